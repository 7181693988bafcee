"""Turn a Qwen-1 checkpoint (a QWenLMHeadModel such as Qwen/Qwen-1_8B-Chat) into a native Qwen2 checkpoint.

Qwen-1 comes with its own model code. With current transformers, that code cannot be imported, and if it
is patched until it can, from_pretrained silently puts random numbers into every layer's attn.c_proj. So
the code is never run here: the weights are read from their files, renamed and written again. The two
architectures are the same, except that Qwen-1 keeps q, k and v in one matrix, writes the gated MLP as
w1 * silu(w2), and counts both halves of that MLP in intermediate_size.

Not covered: contexts longer than seq_length. There, Qwen-1 rescales its rotary angles (dynamic NTK) and
its queries (logn), which Qwen2 cannot do. Neither has any effect up to seq_length, which therefore becomes
max_position_embeddings. Quantized, visual and audio variants are refused.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import normalizers
from transformers import GenerationConfig, Qwen2Config, Qwen2Tokenizer

from course.qwen import TINY
from course.qwen.qwen1 import (
    Weight,
    converter,
    layout_of,
    load,
    read_config,
    read_ranks,
    read_sampling,
    read_shards,
)
from course.words import words


class ConversionError(Exception):
    """The checkpoint cannot be converted. The message lists everything that is wrong."""


def convert(source: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write the checkpoint folder `source` as a native Qwen2 folder `target`, and return `target`.

    `source` contains config.json, qwen.tiktoken and the weights, as safetensors or as PyTorch .bin
    files, in one file or in shards with an index. Each file of weights becomes one file with the same
    dtype, and at most one of them is in memory at a time. `target` must not exist. It appears only when
    it is complete, and a failure leaves nothing behind.

    Raises ConversionError.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if os.path.lexists(target):
        raise ConversionError(
            words("{target} already exists and was not changed. Choose another name or remove it.", target=target)
        )
    if not source.is_dir():
        raise ConversionError(
            words("{source} is not a folder. Download the checkpoint first:", source=source)
            + f"\n    hf download Qwen/Qwen-1_8B-Chat --local-dir {source}"
        )

    problems: list[str] = []
    config = read_config(source, problems)
    ranks = read_ranks(source, config, problems)
    layout = layout_of(config) if config else None
    shards = read_shards(source, layout, problems)
    sampling = read_sampling(source, config, ranks, problems)
    if problems:
        raise ConversionError(
            words("{source} is not a complete Qwen-1 checkpoint. What is wrong:", source=source)
            + "".join(f"\n- {problem}" for problem in problems)
        )

    # next to the target, because a rename is atomic only within one file system
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
            raise ConversionError(words("{target} was created in the meantime and was not changed.", target=target))
        partial.rename(target)
    except (OSError, SafetensorError) as error:
        values = {"target": target, "error": error}
        raise ConversionError(
            words("Writing {target} failed, and everything written so far has been removed: {error}", **values)
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write_weights(shards: dict[Path, list[str]], layout: dict[str, Weight], folder: Path) -> torch.dtype:
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
            old = load(file)
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


def _write_settings(config: dict, ranks: dict[bytes, int], sampling: dict, dtype: torch.dtype, folder: Path) -> None:
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
    GenerationConfig(eos_token_id=[turn_end, text_end], pad_token_id=text_end, **sampling).save_pretrained(folder)


def _write_tokenizer(source: Path, window: int, folder: Path) -> None:
    backend = converter(source).converted()
    backend.normalizer = normalizers.NFC()
    Qwen2Tokenizer(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=window,
        clean_up_tokenization_spaces=False,
        chat_template=(TINY / "chat_template.jinja").read_text(encoding="utf-8"),
    ).save_pretrained(folder)
