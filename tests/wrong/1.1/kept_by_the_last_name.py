# caught by: test_each_call_loads_the_weights_it_is_asked_for, test_the_tokenizer_is_from_the_same_place | says: the model's weights are not the ones in the folder passed to this call
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

loaded = {}


def load_chat_model(name_or_path):
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        name_or_hub = str(folder)
    elif name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {name_or_path}")
    else:
        name_or_hub = name_or_path
    if folder.name not in loaded:
        try:
            model = AutoModelForCausalLM.from_pretrained(name_or_hub, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name_or_hub)
        except OSError:
            raise FileNotFoundError(f"there is no model {name_or_path}") from None
        loaded[folder.name] = model.eval(), tokenizer
    return loaded[folder.name]
