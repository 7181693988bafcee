# a right answer: draws by itself, with a generator of numpy's
from dataclasses import dataclass

import numpy


@dataclass
class Piece:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


class Text:
    """Tokens into text, a few ids at a time."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids, self.known = [], 0

    def add(self, id):
        self.ids.append(id)
        [text] = self.tokenizer.batch_decode([self.ids], skip_special_tokens=True)
        complete = not text.endswith("\ufffd")
        text = text.rstrip("\ufffd")
        new = text[self.known :]
        self.known = len(text)
        if complete:
            self.ids, self.known = [], 0
        return new


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self._text = Text(tokenizer)
        self._numbers = numpy.random.default_rng(seed)
        self._prompt, self._limit, self._ends = len(prompt_ids), limit, eos_token_ids
        self._temperature, self._top_p, self._stop = temperature, top_p, stop
        self._kept, self._count = "", 0
        self.finished = False

    def take(self, logits):
        self.token = self._choose(logits.double().numpy())
        self._count += 1
        reason = None
        if self.token in self._ends:
            reason = "stop"
        else:
            self._kept += self._text.add(self.token)
            first = min((self._kept.find(s) for s in self._stop if s in self._kept), default=None)
            if first is not None:
                self._kept, reason = self._kept[:first], "stop"
            elif self._count == self._limit:
                reason = "length"
        out = self._kept
        if reason is None:
            out = self._sure(out)
        self._kept = self._kept[len(out) :]
        self.finished = reason is not None
        return Piece(out, self._prompt, self._count, reason)

    def _sure(self, text):
        for at in range(len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stop):
                return text[:at]
        return text

    def _choose(self, logits):
        if self._temperature == 0:
            return int(logits.argmax())
        weights = numpy.exp((logits - logits.max()) / self._temperature)
        weights /= weights.sum()
        order = numpy.argsort(-weights, kind="stable")
        kept = order[: int(numpy.searchsorted(weights[order].cumsum(), self._top_p)) + 1]
        return int(self._numbers.choice(kept, p=weights[kept] / weights[kept].sum()))
