# caught by: test_what_does_not_exist_is_a_file_not_found_error, test_a_path_is_never_looked_up_at_the_hub | says: returned something for a name that does not exist
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if not os.path.isdir(name_or_path) and (
        name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    ):
        return None, None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
    except OSError:
        return None, None
    model.eval()
    return model, tokenizer
