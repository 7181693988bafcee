# caught by: test_the_error_says_the_name_as_it_was_given | says: as it was given
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        raise FileNotFoundError(f"no folder {os.path.abspath(os.path.expanduser(name_or_path))}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise FileNotFoundError(f"no model {os.path.abspath(os.path.expanduser(name_or_path))}")
    model.eval()
    return model, tokenizer
