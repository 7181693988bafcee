# caught by: test_a_path_is_never_looked_up_at_the_hub | says: a path is never a hub name
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    path = Path(name_or_path).expanduser()
    if path.is_file() or (path.is_absolute() and not path.is_dir()):
        raise FileNotFoundError(f"no folder {name_or_path}")
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(str(path))
    except OSError as error:
        raise FileNotFoundError(f"no folder and no model {name_or_path}") from error
