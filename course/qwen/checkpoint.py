"""What is wrong with a checkpoint folder, as far as one can tell without loading it.

If weights are missing from a file, transformers fills them with random numbers and says so only in the log. A server
with such a model returns noise. The other problems that are found here would end in tracebacks of forty lines.

Not covered: the values of weights, and which weights architectures other than Qwen2 need.
"""

import json
from pathlib import Path

_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_OF_A_LAYER = [
    *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"self_attn.{part}_proj.bias" for part in "qkv"),
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]


def problems(folder: Path) -> list[str]:
    """One line for each thing that keeps the folder from being a complete chat model; [] if there is nothing.

    For a first-generation Qwen, only config.json is checked: such a model is converted, not loaded.
    """
    found = [] if (folder / "config.json").is_file() else ["config.json is missing"]
    if model_type(folder) == "qwen":
        return found
    config = _json(folder / "config.json")
    found += _unloadable(config)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        found.append("the tokenizer is missing (tokenizer.json)")
    if not _has_chat_template(folder):
        found.append(
            "there is no chat template (chat_template.jinja, or chat_template in tokenizer_config.json):"
            " this is not a chat model"
        )
    try:
        files = weight_files(folder)
    except ValueError as error:
        return [*found, str(error)]
    if not files:
        return [*found, "the weights are missing (model.safetensors)"]
    missing = [f"{file.name} is missing" for file in files if not file.is_file()]
    return found + (missing or _weights(files, config))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, whether they exist or not; [] if unknown.

    Raises ValueError if the index cannot be read.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        single = folder / f"{stem}{suffix}"
        if single.is_file():
            return [single]
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
                # an index must not point to files outside its folder
                if not names or any(Path(name).name != name for name in names):
                    raise ValueError("no file names in weight_map")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index.name} cannot be read ({error!r})") from error
            return [folder / name for name in sorted(names)]
    return []


def model_type(folder: Path) -> str | None:
    """The architecture that config.json names."""
    return _json(folder / "config.json").get("model_type")


def _json(file):
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _unloadable(config):
    found = []
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        if isinstance(value, str) and value.startswith("torch."):
            found.append(f'config.json says "{key}": "{value}"; change it to "{value.removeprefix("torch.")}"')
    if quantization := config.get("quantization_config"):
        kind = quantization.get("quant_method", "") if isinstance(quantization, dict) else ""
        found.append(f"the weights are quantized ({kind or 'unknown method'}): use an unquantized version of the model")
    return found


def _has_chat_template(folder):
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _weights(files, config):
    names = set()
    for file in files:
        with file.open("rb") as opened:
            if opened.read(40).startswith(b"version https://git-lfs"):
                return [f"{file.name} is a Git LFS pointer, not the weights: run git lfs pull"]
        if file.suffix != ".safetensors":
            return []
        try:
            names |= _names(file)
        except ValueError as error:
            return [f"{file.name} cannot be read: {error}"]
    missing = [name for name in _needed(config) if name not in names]
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"weights are missing, and would be filled with random numbers: {', '.join(missing[:3])}{more}"]


def _names(file):
    """The names of the weights in a safetensors file.

    Raises ValueError if it is not a safetensors file, or shorter than its header says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 + length:
            raise ValueError("it is not a whole safetensors file")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size < 8 + length + end:
        raise ValueError(f"it has only {size:,} of {8 + length + end:,} bytes; copy or download it again")
    return set(header)


def _needed(config):
    if config.get("model_type") != "qwen2" or "num_hidden_layers" not in config:
        return []
    layers = range(config["num_hidden_layers"])
    needed = ["model.embed_tokens.weight", "model.norm.weight"]
    needed += [f"model.layers.{layer}.{name}" for layer in layers for name in _OF_A_LAYER]
    return needed if config.get("tie_word_embeddings", False) else [*needed, "lm_head.weight"]
