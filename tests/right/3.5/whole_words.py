# a right answer: text comes out up to the last blank, newline or ideograph only, and the rest at the end
import re
from dataclasses import dataclass

import torch


@dataclass
class Piece:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


def choose(logits, temperature, top_p, generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = ((logits - logits.max()) / temperature).softmax(dim=-1)
    probabilities, ids = probabilities.sort(descending=True, stable=True)
    likelier = probabilities.cumsum(dim=-1) - probabilities
    drawn = torch.multinomial(probabilities * (likelier < top_p), num_samples=1, generator=generator)
    return int(ids[drawn])


def end_of_words(text):
    found = [match.end() for match in re.finditer("[ \n\u4e00-\u9fff]", text)]
    return found[-1] if found else 0


def may_begin(stop, text):
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer = tokenizer
        self.usage = len(prompt_ids)
        self.limit, self.eos_token_ids = limit, frozenset(eos_token_ids)
        self.sampling = (temperature, top_p)
        self.stop = tuple(stop)
        self.generator = torch.Generator("cpu")
        self.generator.manual_seed(int.from_bytes(__import__("os").urandom(4), "big") if seed is None else seed)
        self.bytes_left = []
        self.buffer = ""
        self.count = 0
        self.finished = False
        self.token = None

    def take(self, logits):
        self.token = token = choose(logits, *self.sampling, self.generator)
        self.count += 1
        is_end = token in self.eos_token_ids
        if not is_end:
            self.bytes_left.append(token)
        text = self.tokenizer.decode(self.bytes_left, skip_special_tokens=True)
        if self.count == self.limit or is_end:
            self.buffer += text.rstrip("\ufffd")
        elif not text.endswith("\ufffd"):
            self.buffer += text
            self.bytes_left = []
        starts = sorted(self.buffer.index(stop) for stop in self.stop if stop in self.buffer)
        if starts:
            return self.last(self.buffer[: starts[0]], "stop")
        if is_end or self.count == self.limit:
            return self.last(self.buffer, "stop" if is_end else "length")
        held = max([may_begin(stop, self.buffer) for stop in self.stop], default=0)
        # a blank that a stop sequence may begin with is held, the word before it is not
        ready = min(end_of_words(self.buffer), len(self.buffer) - held)
        out, self.buffer = self.buffer[:ready], self.buffer[ready:]
        return Piece(out, self.usage, self.count)

    def last(self, text, reason):
        self.finished = True
        return Piece(text, self.usage, self.count, reason)
