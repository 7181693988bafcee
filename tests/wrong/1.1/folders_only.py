# caught by: test_a_hub_name_in_the_cache_loads | says: for a model that is there
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}")
    model.eval()
    return model, tokenizer
