"""Turn a Qwen-1 checkpoint (QWenLMHeadModel, say Qwen/Qwen-1_8B-Chat) into a native Qwen2 one.

Qwen-1 brings its own model code. Under current transformers that code does not import, and patched
until it does, from_pretrained silently puts random numbers into every layer's attn.c_proj. So the
code is never run here: the weights are read from their files, renamed and written again. The two
architectures are the same, except that Qwen-1 keeps q, k and v in one matrix, writes the gated MLP
as w1 * silu(w2), and counts both halves of that MLP in intermediate_size.

Not covered: contexts longer than seq_length. There Qwen-1 rescales its rotary angles (dynamic NTK)
and its queries (logn), which Qwen2 does not know. Both do nothing up to seq_length, so that becomes
max_position_embeddings. Quantized, visual and audio variants are refused.
"""

import base64
import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from tokenizers.models import BPE
from transformers import GenerationConfig, Qwen2Config, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from course.qwen import TINY
from course.qwen.checkpoint import weight_files

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [
    f"<|extra_{i}|>" for i in range(205)
]

# what Qwen2 can express; a config that leaves them out means these values
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
_ONLY_SAMPLED = ("temperature", "top_k", "top_p")  # an error without do_sample
# computed when the model is built, saved by some releases
_BUFFERS = re.compile(
    r"transformer\.(h\.\d+\.attn\.)?(bias|masked_bias|logn_tensor|rotary_emb\.inv_freq)"
)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class ConversionError(Exception):
    """The checkpoint cannot be converted. The message lists everything that is wrong."""


@dataclass(frozen=True)
class _Weight:
    shape: tuple[int, ...]
    targets: tuple[str, ...]  # cut along the first dimension where there are several


def convert(source: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write the checkpoint folder `source` as a native Qwen2 folder `target`, and return `target`.

    `source` holds config.json, qwen.tiktoken and the weights, as safetensors or as PyTorch .bin
    files, in one file or in shards with their index. Each file of weights becomes one file with
    the same dtype; no more than one of them is in memory at a time. `target` must not exist; it
    appears when it is complete, and a failure leaves nothing.

    Raises ConversionError.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if os.path.lexists(target):
        raise ConversionError(
            f"{target} exists already, and is left as it is. Choose another name or remove it."
        )
    if not source.is_dir():
        raise ConversionError(
            f"{source} is not a folder. Download the checkpoint first:\n"
            f"    hf download Qwen/Qwen-1_8B-Chat --local-dir {source}"
        )

    problems: list[str] = []
    config = _read_config(source, problems)
    ranks = _read_ranks(source, config, problems)
    layout = _layout(config) if config else None
    shards = _read_shards(source, layout, problems)
    sampling = _read_sampling(source, config, ranks, problems)
    if problems:
        raise ConversionError(
            f"{source} is not a complete Qwen-1 checkpoint. What is wrong:\n"
            + "\n".join(f"- {problem}" for problem in problems)
        )

    # beside the target: a rename is whole or not at all only within one file system
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        dtype = _write_weights(shards, layout, partial)
        _write_settings(config, ranks, sampling, dtype, partial)
        _write_tokenizer(source, config["seq_length"], partial)
        for file in partial.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner may read
        if os.path.lexists(target):
            raise ConversionError(f"{target} has appeared meanwhile, and is left as it is.")
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"Writing {target} failed, nothing is left of it: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


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


def _read_config(source: Path, problems: list[str]) -> dict | None:
    """The config, or None where it is of no use."""
    if not (source / "config.json").is_file():
        problems.append("config.json is missing")
        return None
    config = _read_json(source / "config.json", problems)
    if config is None:
        return None
    model_type = config.get("model_type")
    if model_type != "qwen":
        hint = " (it is native already: use it as it is)" if model_type == "qwen2" else ""
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
            problems.append(
                f"config.json: {key} is {config[key]!r}; only {value!r} can be converted"
            )
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


def _read_ranks(source: Path, config: dict | None, problems: list[str]) -> dict[bytes, int] | None:
    """The tokens of qwen.tiktoken with their ids, or None where the file is of no use."""
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
        problems.append("qwen.tiktoken: the ranks do not count from 0 without gaps")
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
    # tiktoken takes a whole word that is a token as it is, Qwen2's tokenizer only merges
    vocab, merges = _converter(source).extract_vocab_merges_from_model(file)
    bpe = BPE(vocab, merges)
    stray = [rank for token, rank in vocab.items() if len(bpe.tokenize(token)) != 1]
    if stray:
        problems.append(
            f"qwen.tiktoken: {len(stray)} tokens cannot be merged from shorter ones "
            f"(the first has rank {stray[0]})"
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
            raise ValueError(f"line {number} is not a token in base64 and a number") from None
    return ranks


def _layout(config: dict) -> dict[str, _Weight]:
    """Every tensor of a Qwen-1 checkpoint, with its shape and its native names."""
    vocab, width = config["vocab_size"], config["hidden_size"]
    inner = config["intermediate_size"] // 2
    layout = {
        "transformer.wte.weight": _Weight((vocab, width), ("model.embed_tokens.weight",)),
        "transformer.ln_f.weight": _Weight((width,), ("model.norm.weight",)),
        "lm_head.weight": _Weight((vocab, width), ("lm_head.weight",)),
    }
    for i in range(config["num_hidden_layers"]):
        old, new = f"transformer.h.{i}.", f"model.layers.{i}."
        for kind, shape in (("weight", (3 * width, width)), ("bias", (3 * width,))):
            layout[f"{old}attn.c_attn.{kind}"] = _Weight(
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
            layout[f"{old}{name}.weight"] = _Weight(shape, (f"{new}{native}.weight",))
    return layout


def _load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped: the disk is read when a tensor is used."""
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _read_shards(
    source: Path, layout: dict[str, _Weight] | None, problems: list[str]
) -> dict[Path, list[str]]:
    """For each file of weights the tensors to take from it."""
    try:
        files = weight_files(source)
    except ValueError as error:
        problems.append(str(error))
        return {}
    if not files:
        problems.append(
            "the weights are missing: neither model.safetensors nor model.safetensors.index.json "
            "(nor pytorch_model.bin nor its index) is there"
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
            for name, tensor in _load(file).items():
                seen[name] = (file, tuple(tensor.shape), tensor.dtype)
        except Exception as error:  # torch and safetensors have many ways to dislike a file
            reason = str(error).strip().split("\n")[0]
            problems.append(f"{file.name} is damaged or incomplete; download it again ({reason})")
            unread = True
    if layout is None:
        return {}

    # what an absent file holds would only be a long echo of its name
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


def _read_sampling(
    source: Path, config: dict | None, ranks: dict[bytes, int] | None, problems: list[str]
) -> dict:
    """What the checkpoint says about sampling; {} if it says nothing."""
    settings = _read_json(source / "generation_config.json", problems) or {}
    end = settings.get("eos_token_id")
    # <|endoftext|> follows the last rank: the one sign of a file cut at the end of a line
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


def _write_weights(
    shards: dict[Path, list[str]], layout: dict[str, _Weight], folder: Path
) -> torch.dtype:
    weight_map: dict[str, str] = {}
    sizes = {file: file.stat().st_size for file in shards}
    total = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("Converting", total=sum(sizes.values()))
        for number, (file, names) in enumerate(shards.items(), 1):
            old = _load(file)
            new: dict[str, torch.Tensor] = {}
            for name in names:
                targets = layout[name].targets
                for part, tensor in zip(targets, old[name].chunk(len(targets)), strict=True):
                    new[part] = tensor.contiguous()
            shard = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            out = f"model{shard}.safetensors"
            save_file(new, folder / out, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(new, out)
            total += sum(tensor.nbytes for tensor in new.values())
            if "model.embed_tokens.weight" in new:
                dtype = new["model.embed_tokens.weight"].dtype
            progress.advance(task, sizes[file])
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return dtype


def _write_settings(
    config: dict, ranks: dict[bytes, int], sampling: dict, dtype: torch.dtype, folder: Path
) -> None:
    text_end, _, turn_end = range(len(ranks), len(ranks) + 3)
    Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"] // 2,
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_attention_heads"],
        max_position_embeddings=config["seq_length"],
        rms_norm_eps=config["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
        tie_word_embeddings=False,
        eos_token_id=turn_end,
        pad_token_id=text_end,
        dtype=dtype,
    ).save_pretrained(folder)
    GenerationConfig(
        eos_token_id=[turn_end, text_end], pad_token_id=text_end, **sampling
    ).save_pretrained(folder)


class _Converter(TikTokenConverter):
    # the one of tiktoken keeps a copy in a cache by path, and would give an older file's tokens
    load_tiktoken_bpe = staticmethod(_parse_ranks)


def _converter(source: Path) -> _Converter:
    return _Converter(
        vocab_file=source / "qwen.tiktoken",
        pattern=PRETOKENIZE_REGEX,
        extra_special_tokens=SPECIAL_TOKENS,
    )


def _write_tokenizer(source: Path, window: int, folder: Path) -> None:
    backend = _converter(source).converted()
    backend.normalizer = normalizers.NFC()
    Qwen2Tokenizer(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=window,
        clean_up_tokenization_spaces=False,
        chat_template=(TINY / "chat_template.jinja").read_text(encoding="utf-8"),
    ).save_pretrained(folder)
