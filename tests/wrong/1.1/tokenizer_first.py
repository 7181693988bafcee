# caught by: test_returns_a_causal_language_model_and_a_tokenizer | says: first the model, then the tokenizer
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}")
    model.eval()
    return tokenizer, model
