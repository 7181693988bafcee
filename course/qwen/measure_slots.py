"""Measures what each trick in `slots.py` is worth, and checks that none of them changes an answer.

    python -m course.qwen.measure_slots [--rounds 15]
    python -m course.qwen.measure_slots --answers [--prompts 200] [--tokens 128]
    python -m course.qwen.measure_slots --gpu

Without options, it measures how long a step and a prefill of the tiny Qwen take: with all tricks, with each trick left
out in turn, with the plain slot model from exercise 4.5, and with transformers' own `generate`. In each round, all of
them take turns. A ratio says how many times as long something takes, and is the median over the rounds. Times are the
CPU time of this process, in one thread; on an otherwise idle computer, that is how long it takes.

With `--answers`, it checks whether greedy answers match those of `generate`, token for token, both alone in the slot
model and next to 15 others.

With `--gpu`, it measures how long a step takes on CUDA, in bfloat16, with random weights in the shape of
Qwen1.5-1.8B-Chat, and how many tokens per second that and `generate` make. `--gpu --shape small` is for trying it out,
even on a CPU, in float32.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from functools import partial
from operator import truediv

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from course.answers import load
from course.qwen import slots, slots_cuda
from course.qwen.models import tiny

ROWS = (1, 4, 16, 64)
PROMPT = 27
"""How many ids a short question has, including the default system line."""
STEPS = 10


class PlainLinear:
    """`_Linear` without packed weights."""

    def __init__(self, *weights, bias=None):
        self.weight, self.bias = torch.cat([each.detach().float() for each in weights]), bias

    def __call__(self, x):
        return F.linear(x, self.weight, self.bias)


class TransposedLinear(slots._Linear):
    """`_Linear` as it is without fbgemm."""

    def __init__(self, *weights, bias=None):
        weight = torch.cat([each.detach().float() for each in weights])
        bias = torch.zeros(len(weight)) if bias is None else bias
        self._packed, self._weight, self._bias = None, weight.t().contiguous(), bias


class ThroughTorchOps(slots._Linear):
    """`_Linear` with the operator as it is usually called."""

    def __call__(self, x):
        if self._packed is None:
            return super().__call__(x)
        return torch.ops.quantized.linear_dynamic_fp16(x, self._packed)


class OneByOne:
    """Several linear layers with the same input, each as a separate product."""

    def __init__(self, *weights, bias=None):
        biases = bias.split([len(each) for each in weights]) if bias is not None else [None] * len(weights)
        self.parts = [_linear(weight, bias=part) for weight, part in zip(weights, biases, strict=True)]

    def __call__(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


_linear = slots._Linear


class WithSdpa(slots.SlotModel):
    def _attend(self, query, keys, values, mask):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)


class WithRealRotary(slots.SlotModel):
    def _turned(self, pairs, turns):
        first, second = pairs.unbind(-1)
        turned = first * turns.real - second * turns.imag, second * turns.real + first * turns.imag
        return torch.stack(turned, dim=-1).flatten(-2)


class WithRmsNorm(slots.SlotModel):
    def __init__(self, model, **options):
        super().__init__(model, **options)
        self._eps = model.config.rms_norm_eps
        root = model.config.hidden_size**0.5
        for weight in (self._norm, *(each for layer in self._layers for each in (layer.norm, layer.mlp_norm))):
            weight /= root

    def _normed(self, x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, self._eps)


def variants(model):
    """{what is left out: (slot model, a function that returns the slots for a step of n rows)}"""
    lowest = range
    found = {
        "all tricks": (slots.SlotModel(model, slots=64), lowest),
        "weights not packed, F.linear": (_with_linear(PlainLinear, model), lowest),
        "weights not packed, addmm": (_with_linear(TransposedLinear, model), lowest),
        "the operator through torch.ops": (_with_linear(ThroughTorchOps, model), lowest),
        "q, k, v apart; gate, up apart": (_with_linear(OneByOne, model), lowest),
        "slots far apart: caches gathered": (slots.SlotModel(model, slots=256), partial(_every, 4)),
        "scaled_dot_product_attention": (WithSdpa(model, slots=64), lowest),
        "rms_norm": (WithRmsNorm(model, slots=64), lowest),
        "rotary in real numbers": (WithRealRotary(model, slots=64), lowest),
        "exercise 4.5, the plain one": (load("4.5", "SlotModel", solution=True)(model, slots=64), lowest),
    }
    return found


def _with_linear(kind, model):
    slots._Linear = kind
    try:
        return slots.SlotModel(model, slots=64)
    finally:
        slots._Linear = _linear


def _every(distance, count):
    return range(distance - 1, distance * count, distance)


def steps_ms(slot_model, named):
    """Milliseconds per step, over STEPS steps after a prompt of PROMPT ids."""
    for slot in named:
        slot_model.prefill(slot, [7] * PROMPT)
    ids = [7] * len(named)
    slot_model.step(named, ids)
    start = time.process_time()
    for _ in range(STEPS):
        slot_model.step(named, ids)
    return (time.process_time() - start) / STEPS * 1000


def generate_ms(model, rows, clock=time.process_time):
    """Milliseconds per step of `generate`, under the same conditions and without its prefill."""
    prompt = torch.full((rows, PROMPT), 7, device=model.device)
    times = []
    for count in (1, 1 + STEPS):
        start = clock()
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).tolist()  # waits for a GPU
        times.append(clock() - start)
    return (times[1] - times[0]) / STEPS * 1000


def measure(rounds, console):
    model, tokenizer = tiny()
    found = variants(model)
    times = {(name, rows): [] for name in [*found, "transformers' generate"] for rows in ROWS}
    for number in range(rounds + 1):
        for rows in ROWS:
            for name, (slot_model, lowest) in found.items():
                ms = steps_ms(slot_model, list(lowest(rows)))
                times[name, rows] += [ms] if number else []
            if number:
                times["transformers' generate", rows].append(generate_ms(model, rows))
    table = Table("a step", *(f"{rows} row{'s' * (rows > 1)}" for rows in ROWS), box=None)
    all_tricks = next(iter(found))
    table.add_row(all_tricks, *(f"{statistics.median(times[all_tricks, rows]):.2f} ms" for rows in ROWS))
    for name in [*found, "transformers' generate"][1:]:
        ratios = [map(truediv, times[name, rows], times[all_tricks, rows]) for rows in ROWS]
        table.add_row(name, *(f"{statistics.median(each):.2f} x" for each in ratios))
    console.print(table)
    console.print()
    console.print(prefills(model, tokenizer, rounds))


def prefills(model, tokenizer, rounds):
    """Measure what it is worth to keep a prefix, to run the last layer for one token only, and to join four prompts."""
    asked = [_ids(tokenizer, text) for text in ("What is a token?", "Hello!", "什么是 KV 缓存？", "Why stream?")]
    prefix = os.path.commonprefix(asked)
    plain, kept, whole = (slots.SlotModel(model, slots=4, prefix=each) for each in ([], prefix, []))
    whole._last = None
    # for the layers, it makes no difference which prompts the rows come from
    joined = sum(asked, [])
    ways = {
        "four prompts, one after the other": lambda: [plain.prefill(slot, ids) for slot, ids in enumerate(asked)],
        f"... with a prefix of {len(prefix)} ids kept": lambda: [kept.prefill(n, ids) for n, ids in enumerate(asked)],
        f"their {len(joined)} ids as one prompt": lambda: plain.prefill(0, joined),
        "... through the whole of the last layer": lambda: whole.prefill(0, joined),
    }
    times = {name: [] for name in ways}
    for number in range(3 * rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name] += [(time.process_time() - start) * 1000] if number else []
    table = Table("prefills", "", "", box=None)
    first = next(iter(times.values()))
    for name, each in times.items():
        ratio = statistics.median(map(truediv, each, first))
        table.add_row(name, f"{statistics.median(each):.2f} ms", f"{ratio:.2f} x")
    return table


def measure_gpu(shape, rounds, console):
    from course.peers import SHAPES, write_random

    with tempfile.TemporaryDirectory() as folder:
        write_random(folder, SHAPES[shape])
        on_cuda = torch.cuda.is_available()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if on_cuda else torch.float32)
    if on_cuda:
        model = model.to("cuda")
    slot_model = (slots_cuda if on_cuda else slots).SlotModel(model, slots=max(ROWS))
    table = Table("rows", "ms per step", "tokens/s", "generate, tokens/s", box=None)
    for rows in ROWS:
        # the first times are not counted: graphs are captured in them
        step_s = [greedy_step_s(slot_model, rows) for _ in range(rounds + 1)][1:]
        whole_ms = [generate_ms(model, rows, time.perf_counter) for _ in range(rounds + 1)][1:]
        step_s, whole_s = statistics.median(step_s), statistics.median(whole_ms) / 1000
        table.add_row(str(rows), f"{step_s * 1000:.2f}", f"{rows / step_s:,.0f}", f"{rows / whole_s:,.0f}")
    console.print(torch.cuda.get_device_name() if on_cuda else "a CPU, which says nothing about a GPU")
    console.print(table)


def greedy_step_s(slot_model, rows):
    """Seconds per step of `rows` greedy answers. As in an engine, tokens are chosen on the CPU."""
    named = list(range(rows))
    ids = [int(slot_model.prefill(slot, [7] * PROMPT).argmax()) for slot in named]
    start = time.perf_counter()
    for _ in range(STEPS):
        ids = slot_model.step(named, ids).float().numpy().argmax(-1).tolist()
    return (time.perf_counter() - start) / STEPS


def _ids(tokenizer, text):
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


def prompts(tokenizer, count):
    """The ids of `count` questions in English and Chinese, always the same ones."""
    from course.qwen.making import corpus

    rng, facts = random.Random(0), list(corpus.facts())
    texts = {}
    while len(texts) < count:
        term, lang = rng.choice(facts), rng.choice(["en", "zh"])
        phrasing = rng.choice(corpus.fact_phrasings(rng.choice(corpus.FACETS), lang))
        texts[corpus.ask_fact(phrasing, term, rng.choice(corpus.facts()[term][lang]))] = None
    return [_ids(tokenizer, text) for text in texts]


def together(slot_model, asked, tokens, ends):
    """Greedy answers to all these prompts at once. An answer that has ended leaves its slot."""
    answers = [[int(slot_model.prefill(slot, ids).argmax())] for slot, ids in enumerate(asked)]
    while running := [n for n, each in enumerate(answers) if each[-1] not in ends and len(each) < tokens]:
        rows = slot_model.step(running, [answers[n][-1] for n in running])
        for n, row in zip(running, rows, strict=True):
            answers[n].append(int(row.argmax()))
    return answers


def differing(slot_model, model, asked, tokens):
    """Which answers differ from those of `generate`: ("alone" or "next to others", the number of the prompt)."""
    ends, found = slot_model.eos_token_ids, []
    for first in range(0, len(asked), 16):
        some = asked[first : first + 16]
        for n, (ids, beside) in enumerate(zip(some, together(slot_model, some, tokens, ends), strict=True), first):
            prompt = torch.tensor([ids])
            options = {"max_new_tokens": tokens, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
            expected = model.generate(prompt, **options)[0, len(ids) :].tolist()
            found += [("next to others", n)] * (beside != expected)
            found += [("alone", n)] * (together(slot_model, [ids], tokens, ends) != [expected])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m course.qwen.measure_slots", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--answers", action="store_true", help="compare answers with those of generate")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--gpu", action="store_true", help="measure a step of a large model on CUDA")
    parser.add_argument("--shape", choices=["1.8B", "small"], default="1.8B", help="with --gpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    if options.gpu:
        measure_gpu(options.shape, options.rounds, console)
        return 0
    if not options.answers:
        measure(options.rounds, console)
        return 0
    model, tokenizer = tiny()
    found = differing(slots.SlotModel(model), model, prompts(tokenizer, options.prompts), options.tokens)
    console.print(
        f"{options.prompts} prompts, alone and next to 15 others: {len(found)} answers differ from generate's."
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
