# caught by: test_a_folder_loads_however_its_path_is_written | says: for a model that exists
import re

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    folder = name_or_path
    try:
        if re.fullmatch(r"[\w-]+/[\w.-]+", name_or_path):
            folder = snapshot_download(name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError:
        raise FileNotFoundError(f"{name_or_path} is not on the hub, nor a folder") from None
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
