# a right answer: each stop sequence is an automaton that reads character by character (Knuth, Morris, Pratt)
from dataclasses import dataclass

import torch
from tokenizers.decoders import DecodeStream


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


class Automaton:
    def __init__(self, word):
        self.word, self.matched = word, 0
        self.back = [0] * (len(word) + 1)
        n = 0
        for at in range(1, len(word)):
            while n and word[at] != word[n]:
                n = self.back[n]
            n += word[at] == word[n]
            self.back[at + 1] = n

    def read(self, character):
        while self.matched and (self.matched == len(self.word) or self.word[self.matched] != character):
            self.matched = self.back[self.matched]
        self.matched += self.word[self.matched] == character
        return self.matched == len(self.word)


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer = tokenizer.backend_tokenizer
        self.settings = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed) if seed is not None else None
        self.stops = [Automaton(word) for word in stop]
        self.ends = eos_token_ids
        self.limit = limit
        self.prompt_tokens = len(prompt_ids)
        self.completion_tokens = 0
        self.stream, self.undecoded = DecodeStream(skip_special_tokens=True), []
        self.held = ""
        self.finish_reason = None

    @property
    def finished(self):
        return self.finish_reason is not None

    def take(self, logits):
        self.token = choose(logits, *self.settings, self.generator)
        self.completion_tokens += 1
        out = ""
        if self.token in self.ends:
            self.finish_reason = "stop"
            out = self.read(self.last_characters())
        else:
            self.undecoded.append(self.token)
            text = self.stream.step(self.tokenizer, self.token)
            if text:
                self.undecoded = []
                out = self.read(text)
            if self.completion_tokens == self.limit and not self.finished:
                out += self.read(self.last_characters())
                self.finish_reason = self.finish_reason or "length"
        if self.finished:
            out += self.held
        return Piece(out, self.prompt_tokens, self.completion_tokens, self.finish_reason)

    def read(self, text):
        """The part of the text that no stop sequence can begin with any more."""
        place = len(self.held)
        text = self.held + text
        begins = []
        for at in range(place, len(text)):
            begins += [at + 1 - len(stop.word) for stop in self.stops if stop.read(text[at])]
        if begins:
            # of a longer text than up to the end of the first one nothing counts
            self.finish_reason, self.held = "stop", ""
            return text[: min(begins)]
        held = max((stop.matched for stop in self.stops), default=0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]

    def last_characters(self):
        text = self.tokenizer.decode(self.undecoded, skip_special_tokens=True)
        self.undecoded = []
        return text.rstrip("\ufffd")
