"""A Qwen-1 checkpoint folder: what is read from it, and everything that can be wrong with it.

Whatever is wrong is added to `problems`, one line each, so that people learn about all of it at once.
"""

import base64
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers.models import BPE
from transformers import GenerationConfig
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from course.qwen.checkpoint import weight_files

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]

# what Qwen2 can express; these are also the values of a config that leaves them out
_FIXED = {
    "no_bias": True,
    "scale_attn_weights": True,
    "rotary_pct": 1.0,
    "tie_word_embeddings": False,
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "seq_length",
)
_NUMBERS = ("layer_norm_epsilon", "rotary_emb_base")
_SAMPLING = ("do_sample", "repetition_penalty", "max_new_tokens")
_ONLY_SAMPLED = ("temperature", "top_k", "top_p")  # these are an error without do_sample
# computed when the model is built, but some releases save them
_BUFFERS = re.compile(r"transformer\.(h\.\d+\.attn\.)?(bias|masked_bias|logn_tensor|rotary_emb\.inv_freq)")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Weight:
    shape: tuple[int, ...]
    targets: tuple[str, ...]  # if there are several, the tensor is split along its first dimension


def _read_json(file: Path, problems: list[str]) -> dict | None:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} cannot be read ({error})")
        return None
    if not isinstance(content, dict):
        problems.append(f"{file.name} is not a JSON object")
        return None
    return content


def read_config(source: Path, problems: list[str]) -> dict | None:
    """The config, or None if it cannot be used."""
    if not (source / "config.json").is_file():
        problems.append("config.json is missing")
        return None
    config = _read_json(source / "config.json", problems)
    if config is None:
        return None
    model_type = config.get("model_type")
    if model_type != "qwen":
        hint = " (it is already native: use it as it is)" if model_type == "qwen2" else ""
        problems.append(f'config.json: model_type is {model_type!r}, not "qwen"{hint}')
        return None

    found = len(problems)
    for key in _SIZES + _NUMBERS:
        value = config.get(key)
        kinds = int if key in _SIZES else (int, float)
        if key not in config:
            problems.append(f"config.json: {key} is missing")
        elif not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
            problems.append(f"config.json: {key} is {value!r}, not a positive number")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            problems.append(f"config.json: {key} is {config[key]!r}; only {value!r} can be converted")
    if config.get("quantization_config"):
        problems.append("config.json: quantized checkpoints cannot be converted")
    if len(problems) > found:
        return None

    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads or config.get("kv_channels", width // heads) * heads != width:
        problems.append(
            f"config.json: num_attention_heads {heads} x kv_channels "
            f"{config.get('kv_channels', width // heads)} is not hidden_size {width}"
        )
    if config["intermediate_size"] % 2:
        problems.append("config.json: intermediate_size is odd; it counts two equal halves")
    return config if len(problems) == found else None


def read_ranks(source: Path, config: dict | None, problems: list[str]) -> dict[bytes, int] | None:
    """The tokens of qwen.tiktoken with their ids, or None if the file cannot be used."""
    file = source / "qwen.tiktoken"
    if not file.is_file():
        problems.append("qwen.tiktoken is missing")
        return None
    try:
        ranks = _parse_ranks(file)
    except (OSError, ValueError) as error:
        problems.append(f"qwen.tiktoken cannot be read ({error})")
        return None
    if sorted(ranks.values()) != list(range(len(ranks))):
        problems.append("qwen.tiktoken: the ranks are not consecutive numbers from 0")
        return None
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        problems.append(f"qwen.tiktoken: {len(absent)} of the 256 single bytes are missing")
        return None
    if config and len(ranks) + len(SPECIAL_TOKENS) > config["vocab_size"]:
        problems.append(
            f"qwen.tiktoken: {len(ranks)} tokens and {len(SPECIAL_TOKENS)} special tokens are "
            f"more than config.json's vocab_size {config['vocab_size']}"
        )
        return None
    # if a whole word is a token, tiktoken uses it as it is; Qwen2's tokenizer only merges
    vocab, merges = converter(source).extract_vocab_merges_from_model(file)
    bpe = BPE(vocab, merges)
    stray = [rank for token, rank in vocab.items() if len(bpe.tokenize(token)) != 1]
    if stray:
        problems.append(
            f"qwen.tiktoken: {len(stray)} tokens cannot be merged from shorter ones (the first has rank {stray[0]})"
        )
        return None
    return ranks


def _parse_ranks(file: str | os.PathLike) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(Path(file).read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"line {number} is not a base64 token followed by a number") from None
    return ranks


def layout_of(config: dict) -> dict[str, Weight]:
    """Every tensor of a Qwen-1 checkpoint, with its shape and its native names."""
    vocab, width = config["vocab_size"], config["hidden_size"]
    inner = config["intermediate_size"] // 2
    layout = {
        "transformer.wte.weight": Weight((vocab, width), ("model.embed_tokens.weight",)),
        "transformer.ln_f.weight": Weight((width,), ("model.norm.weight",)),
        "lm_head.weight": Weight((vocab, width), ("lm_head.weight",)),
    }
    for i in range(config["num_hidden_layers"]):
        old, new = f"transformer.h.{i}.", f"model.layers.{i}."
        for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            layout[f"{old}attn.c_attn.{kind}"] = Weight(
                shape, tuple(f"{new}self_attn.{part}_proj.{kind}" for part in "qkv")
            )
        for name, shape, native in (
            ("attn.c_proj", (width, width), "self_attn.o_proj"),
            ("mlp.w2", (inner, width), "mlp.gate_proj"),
            ("mlp.w1", (inner, width), "mlp.up_proj"),
            ("mlp.c_proj", (width, inner), "mlp.down_proj"),
            ("ln_1", (width,), "input_layernorm"),
            ("ln_2", (width,), "post_attention_layernorm"),
        ):
            layout[f"{old}{name}.weight"] = Weight(shape, (f"{new}{native}.weight",))
    return layout


def load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, memory-mapped: the disk is read only when a tensor is used."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def read_shards(source: Path, layout: dict[str, Weight] | None, problems: list[str]) -> dict[Path, list[str]]:
    """For each file of weights, the tensors to take from it."""
    try:
        files = weight_files(source)
    except ValueError as error:
        problems.append(str(error))
        return {}
    if not files:
        problems.append(
            "the weights are missing: there is neither model.safetensors nor model.safetensors.index.json "
            "(nor pytorch_model.bin, nor its index)"
        )
        return {}

    seen: dict[str, tuple[Path, tuple[int, ...], torch.dtype]] = {}
    unread = False
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name} is missing")
            unread = True
            continue
        try:
            for name, tensor in load(file).items():
                seen[name] = (file, tuple(tensor.shape), tensor.dtype)
        except Exception as error:  # torch and safetensors raise many kinds of errors
            reason = str(error).strip().split("\n")[0]
            problems.append(f"{file.name} is damaged or incomplete; download it again ({reason})")
            unread = True
    if layout is None:
        return {}

    # listing the tensors of a missing file would add nothing to its name
    missing = [] if unread else [name for name in layout if name not in seen]
    problems += _listed("tensor {} is missing", missing)
    unknown = [name for name in seen if name not in layout and not _BUFFERS.fullmatch(name)]
    problems += _listed("tensor {} is unknown; this is not a plain Qwen-1 text model", unknown)
    shards: dict[Path, list[str]] = {}
    for name, (file, shape, dtype) in seen.items():
        if name not in layout:
            continue
        if shape != layout[name].shape:
            problems.append(f"tensor {name} has shape {shape}, not {layout[name].shape}")
        if dtype not in _FLOATS:
            problems.append(f"tensor {name} is {dtype}; quantized weights cannot be converted")
        shards.setdefault(file, []).append(name)
    return shards


def _listed(line: str, names: list[str], most: int = 30) -> list[str]:
    lines = [line.format(name) for name in names[:most]]
    if len(names) > most:
        lines.append(line.format(f"... and {len(names) - most} more"))
    return lines


def read_sampling(source: Path, config: dict | None, ranks: dict[bytes, int] | None, problems: list[str]) -> dict:
    """What the checkpoint says about sampling; {} if it says nothing."""
    settings = _read_json(source / "generation_config.json", problems) or {}
    end = settings.get("eos_token_id")
    # <|endoftext|> comes right after the last rank: nothing else shows that a file was cut off at the end of a line
    if config and ranks and isinstance(end, int) and len(ranks) != end < config["vocab_size"]:
        problems.append(
            f"qwen.tiktoken has {len(ranks)} tokens, but generation_config.json says {end} "
            "(eos_token_id); download it again"
        )
    keys = _SAMPLING + (_ONLY_SAMPLED if settings.get("do_sample") is True else ())
    sampling = {key: settings[key] for key in keys if settings.get(key) is not None}
    try:
        GenerationConfig(**sampling)
    except ValueError as error:
        problems.append(f"generation_config.json: {error}")
    return sampling


class _Converter(TikTokenConverter):
    # tiktoken's own function caches files by path, and would return the tokens of an older file
    load_tiktoken_bpe = staticmethod(_parse_ranks)


def converter(source: Path) -> _Converter:
    return _Converter(
        vocab_file=source / "qwen.tiktoken",
        pattern=PRETOKENIZE_REGEX,
        extra_special_tokens=SPECIAL_TOKENS,
    )
