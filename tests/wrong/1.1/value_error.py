# caught by: test_what_does_not_exist_is_a_file_not_found_error | says: not ValueError
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        raise ValueError(f"no folder {name_or_path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise ValueError(f"no model {name_or_path}")
    model.eval()
    return model, tokenizer
