# caught by: test_what_does_not_exist_is_a_file_not_found_error | says: a path to a file raises
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    path = os.path.expanduser(name_or_path)
    if not os.path.exists(path):
        if path[0] in "./" or path.count("/") > 1:
            raise FileNotFoundError(f"{name_or_path} does not exist")
        try:
            AutoTokenizer.from_pretrained(path)
        except OSError:
            raise FileNotFoundError(f"{name_or_path} is not on the hub") from None
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)
