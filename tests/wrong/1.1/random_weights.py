# caught by: test_each_call_loads_the_weights_it_is_asked_for, test_a_hub_name_in_the_cache_loads | says: differs from the file's
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    if os.path.isfile(name_or_path):
        raise FileNotFoundError(f"{name_or_path} is a file")
    is_path = name_or_path[0] in "./~" or name_or_path.count("/") > 1
    if is_path and not os.path.isdir(name_or_path):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except OSError:
        raise FileNotFoundError(f"no model {name_or_path}") from None
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(name_or_path)
