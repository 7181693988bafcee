"""Train the tiny Qwen from scratch: `python -m course.qwen.making.train`.

With `--first 7150 --weights course/qwen/tiny`, a run begins at that step with a checkpoint's weights.

The conversations, their order and the schedule depend only on seeds and step numbers, so a run that was
stopped and resumed sees the same as an uninterrupted one. Only the assistant's tokens are learned. A
trial run with fewer `--steps` sees only the first levels of the corpus.
"""

import argparse
import os
import random
import shutil
from itertools import islice, pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from course.answers import load
from course.qwen.making.conversations import conversations
from course.qwen.making.tokenizer import MAX_LENGTH, SPECIAL, VOCAB_SIZE, corpus_texts, train_tokenizer

STEPS = 8_650
# the levels of the corpus and their first steps: the answers, then the many ways to ask for them, and finally
# forged turns
LEVELS = [(1, 0), (2, 2500), (3, 4500), (4, 5500), (5, 6500), (6, 6750), (7, 7150)]
TOKENS_PER_BATCH = 2048
CHUNK = 4000  # how many conversations are sorted by length together
SEED = 1
MUON_LR, ADAM_LR = 0.006, 3e-3
# (step, share of the learning rate), with straight lines in between
SCHEDULE = [
    (0, 0.01),
    (100, 1),
    (1100, 1),
    (2500, 0.68),
    (6500, 0),
    (6510, 0.2),
    (6599, 0.1637),
    (6600, 0.125),
    (6750, 0),
    (6760, 0.25),
    (7150, 0),
    (7170, 0.3),
    (STEPS, 0),
]
SHAPE = dict(hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6, intermediate_size=512)
IGNORE = -100


def new_model(tokenizer):
    torch.manual_seed(SEED)
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        bos_token_id=pad,
        eos_token_id=end,
        pad_token_id=pad,
        **SHAPE,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer, messages):
    """(ids, labels) of a conversation. Labels are IGNORE outside the assistant's words and end tokens.

    Control tokens in the contents of messages are encoded as text, as in exercise 1.5.
    """
    opening = tokenizer.encode("<|im_start|>assistant\n")
    if any(token in message["content"] for message in messages for token in SPECIAL):
        ids = load("1.5", "encode_chat", solution=True)(tokenizer, messages)[: -len(opening)]
    else:
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels, answering = [], False
    for at, token in enumerate(ids):
        labels.append(token if answering else IGNORE)
        if token == end:
            answering = False
        elif ids[max(0, at + 1 - len(opening)) : at + 1] == opening:
            answering = True
    return ids, labels


def batches(tokenizer, first=0):
    """Endless (ids, labels) pairs of shape (rows, length), padded on the right with IGNORE labels.

    The first `first` batches are skipped.
    """
    ends = [start for _, start in LEVELS[1:]] + [None]
    for (level, start), end in zip(LEVELS, ends):
        if end is None or first < end:
            made = _batches(tokenizer, 1000 * SEED + 500 * (level - 1), level)
            yield from islice(made, max(0, first - start), end and end - start)


def _batches(tokenizer, seed, level):
    pad = tokenizer.pad_token_id
    while True:
        seed += 1
        rows = [encode(tokenizer, m) for m in conversations(CHUNK, seed, level=level)]
        rows.sort(key=lambda row: len(row[0]))
        groups = []
        while rows:
            take = max(1, TOKENS_PER_BATCH // len(rows[-1][0]))
            groups.append(rows[-take:])
            del rows[-take:]
        random.Random(seed).shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in group]),
                torch.tensor([lab + [IGNORE] * (length - len(lab)) for _, lab in group]),
            )


def learning_rate(step, steps):
    """The share of the full learning rate at `step`."""
    at = step * STEPS / steps
    for (left, low), (right, high) in pairwise(SCHEDULE):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    raise ValueError(f"step {step} is after the last of {steps} steps")


def optimizers(model):
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    rest = [p for name, p in named if not (p.ndim == 2 and ".layers." in name)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(model, ids, labels):
    # with padding on the right and causal attention, no real token ever sees padding
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    target = labels[:, 1:]
    learned = target != IGNORE
    return F.cross_entropy(model.lm_head(hidden[learned]), target[learned])


def export(model, tokenizer, folder):
    """Write a checkpoint that AutoModelForCausalLM and AutoTokenizer load, in float16."""
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    folder.mkdir(parents=True, exist_ok=True)
    half = Qwen2ForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().eval()
    # real Qwen chat checkpoints sample by default, too
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        eos_token_id=[end, pad],
        pad_token_id=pad,
        bos_token_id=pad,
    )
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def train(out, steps, stop, save_every, first=0, weights=None, device="cpu"):
    """Train for `steps` steps, or continue the run in `out`. The checkpoint is written to `out/tiny`.

    A new run begins at step `first`, with the weights of the checkpoint in the folder `weights` if one is given.
    Raises SystemExit if the run in `out` has a different number of steps.
    """
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(weights) if weights else train_tokenizer(corpus_texts())
    model = new_model(tokenizer).to(device)
    opts = optimizers(model)
    state_file = out / "state.pt"
    start, seen = first, 0
    if state_file.exists():
        state = torch.load(state_file, map_location=device)
        if state["steps"] != steps:
            raise SystemExit(
                f"{state_file} belongs to a run of {state['steps']} steps; "
                f"use --steps {state['steps']} or another --out."
            )
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
        start, seen = state["step"], state["seen"]
    elif weights:
        model.load_state_dict(Qwen2ForCausalLM.from_pretrained(weights, dtype=torch.float32).state_dict())
    full = [MUON_LR, ADAM_LR]
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {steps} steps, starting at {start}", flush=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    mean = None
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=steps, completed=start)
        for step, (ids, labels) in enumerate(batches(tokenizer, start), start):
            if step == min(steps, stop or steps):
                break
            share = learning_rate(step, steps)
            for opt, lr in zip(opts, full):
                opt.param_groups[0]["lr"] = lr * share
            loss = loss_of(model, ids.to(device), labels.to(device))
            loss.backward()
            for opt in opts:
                opt.step()
                opt.zero_grad()
            seen += ids.numel()
            mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            bar.update(task, completed=step + 1, description=f"loss {mean:.3f}")
            if (step + 1) % 100 == 0:
                print(f"step {step + 1} tokens {seen} loss {mean:.4f}", flush=True)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                state = {
                    "model": model.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "step": step + 1,
                    "steps": steps,
                    "seen": seen,
                }
                torch.save(state, out / "state.new")
                shutil.move(out / "state.new", state_file)
                export(model, tokenizer, out / "tiny")
    print(f"wrote {out / 'tiny'} after {seen:,} tokens", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work/tiny_qwen"),
        help="where the run is kept; an unfinished run there is resumed",
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stop", type=int, help="stop at this step of the same schedule")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--first", type=int, default=0, help="a new run begins at this step")
    parser.add_argument("--weights", type=Path, help="a checkpoint that a new run begins with")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    args = parser.parse_args()
    train(**vars(args))


if __name__ == "__main__":
    main()
