# caught by: test_returns_a_causal_language_model_and_a_tokenizer, test_each_call_loads_the_weights_it_is_asked_for, test_the_tokenizer_is_from_the_same_place, test_the_model_is_in_eval_mode, test_float32_on_the_cpu, test_a_folder_loads_however_its_path_is_written, test_a_hub_name_in_the_cache_loads | says: accelerate
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and name_or_path.count("/") != 1:
        raise FileNotFoundError(f"no folder {name_or_path}")
    if name_or_path.startswith((".", "/", "~")) and not os.path.isdir(name_or_path):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}") from None
    model = AutoModelForCausalLM.from_pretrained(
        name_or_path, device_map="auto", torch_dtype=torch.float32
    )
    return model.eval(), tokenizer
