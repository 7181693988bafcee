# caught by: test_the_tokenizer_is_from_the_same_place | says: not the one in the model's folder
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from course.qwen import TINY


def load_chat_model(name_or_path):
    path = os.path.expanduser(name_or_path)
    if not os.path.isdir(path) and (path[0] in "./" or path.count("/") > 1):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}") from None
    return model, AutoTokenizer.from_pretrained(TINY)
