# caught by: test_the_error_says_the_name_as_it_was_given | says: does not say the name
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        raise FileNotFoundError("no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise FileNotFoundError("model not found, check the path or your connection")
    model.eval()
    return model, tokenizer
