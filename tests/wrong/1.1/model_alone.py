# caught by: test_returns_a_causal_language_model_and_a_tokenizer, test_the_tokenizer_is_from_the_same_place | says: has to return two things
import os

import torch
from transformers import AutoModelForCausalLM


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}")
    model.eval()
    return model
