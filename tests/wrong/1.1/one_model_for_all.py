# caught by: test_each_call_loads_the_weights_it_is_asked_for | says: that this call asked for
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_model = None


def load_chat_model(name_or_path):
    global _model
    is_path = name_or_path[0] in "./~" or name_or_path.count("/") > 1
    if is_path and not os.path.isdir(name_or_path):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        if _model is None:
            _model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32).eval()
    except OSError as error:
        raise FileNotFoundError(f"no model {name_or_path}") from error
    return _model, tokenizer
