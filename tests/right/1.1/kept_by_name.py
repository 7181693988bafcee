# a right answer: a class with a cache for each name, a chatty model subclass, a list as the pair
import functools
import pathlib
import re

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class ChatModel(Qwen2ForCausalLM):
    def describe(self):
        return f"{self.num_parameters():,} parameters"


class Loader:
    device = torch.device(
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )

    @functools.lru_cache(maxsize=4)
    def load(self, source):
        settings = {} if self.device.type == "cpu" else {"dtype": "auto"}
        model = ChatModel.from_pretrained(source, **settings)
        if self.device.type == "cpu":
            model = model.to(torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source)
        return [model.eval().requires_grad_(False).to(self.device), tokenizer]


loader = Loader()


def load_chat_model(name_or_path):
    folder = pathlib.Path(name_or_path).expanduser()
    if folder.is_dir():
        return loader.load(str(folder.resolve()))
    if folder.exists() or not HUB_NAME.fullmatch(name_or_path):
        raise FileNotFoundError(f"{name_or_path}: no such folder")
    try:
        return loader.load(name_or_path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{name_or_path}: no such folder, no such model") from error
