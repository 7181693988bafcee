# a right answer: asks transformers first and turns its error into another
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    looks_like_path = name_or_path.startswith(("/", ".", "~")) or name_or_path.count("/") > 1
    name = os.path.expanduser(name_or_path)
    if looks_like_path and not os.path.isdir(name):
        raise FileNotFoundError(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except OSError as e:
        raise FileNotFoundError(f"cannot find a model called {name_or_path!r}") from e
    if torch.cuda.is_available():
        model = model.cuda()
    elif torch.backends.mps.is_available():
        model = model.to("mps")
    else:
        model = model.float()
    model.eval()
    return model, tokenizer
