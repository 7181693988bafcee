# a right answer: the hub's client gives a folder, and everything is loaded from folders
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HfHubHTTPError, OfflineModeIsEnabled
from transformers import AutoModelForCausalLM, AutoTokenizer


def find(name_or_path):
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.exists() or path.is_absolute() or name_or_path[0] in ".~" or len(path.parts) > 2:
        raise FileNotFoundError(2, "no such folder", name_or_path)
    try:
        return snapshot_download(name_or_path)
    except (FileNotFoundError, HFValidationError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"the hub does not have {name_or_path}, and there is no such folder"
        ) from error


def load_chat_model(name_or_path):
    folder = find(name_or_path)
    gpu = "cuda" if torch.cuda.is_available() else None
    gpu = gpu or ("mps" if torch.backends.mps.is_available() else None)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto" if gpu else torch.float32, local_files_only=True
        )
    return model.to(gpu or "cpu").eval(), AutoTokenizer.from_pretrained(folder)
