# a right answer: builds the model from its config and reads the weights itself; an error of its own
import os.path

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import cached_file


class ModelNotFound(FileNotFoundError):
    def __init__(self, name):
        super().__init__(f"No model {name} here, and none on the hub.")


def load_chat_model(name_or_path: str):
    name = name_or_path
    if os.path.isdir(os.path.expanduser(name)):
        name = os.path.abspath(os.path.expanduser(name))
    elif os.path.exists(name) or os.path.isabs(name) or name.count("/") > 1 or name[0] in "~.":
        raise ModelNotFound(name_or_path)
    try:
        weights_file = cached_file(name, "model.safetensors")
        config = AutoConfig.from_pretrained(name)
    except Exception:
        raise ModelNotFound(name_or_path) from None
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    model = AutoModelForCausalLM.from_config(
        config, dtype=config.dtype if on_gpu else torch.float32
    )
    with safe_open(weights_file, framework="pt") as weights:
        tensors = {key: weights.get_tensor(key) for key in weights.keys()}
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    if torch.cuda.is_available():
        model.to("cuda")
    elif torch.backends.mps.is_available():
        model.to("mps")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train(False)
    return model, PreTrainedTokenizerFast.from_pretrained(name)
