# a right answer: DecodeStream, and what it leaves at the end decoded by hand; stops are found in a held tail
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


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer = tokenizer
        self.stream = DecodeStream(skip_special_tokens=True)
        self.waiting = []
        self.prompt_tokens, self.limit, self.eos = len(prompt_ids), limit, set(eos_token_ids)
        self.temperature, self.top_p, self.stop = temperature, top_p, list(stop)
        self.generator = torch.Generator()
        self.generator.manual_seed(torch.seed() % 2**32 if seed is None else seed)
        self.count = 0
        self.tail = ""
        self.token = None
        self.finished = False

    def take(self, logits):
        self.token = choose(logits, self.temperature, self.top_p, self.generator)
        self.count += 1
        if self.token in self.eos:
            return self.end("stop")
        self.waiting.append(self.token)
        text = self.stream.step(self.tokenizer.backend_tokenizer, self.token)
        if text is not None:
            self.waiting = []
            self.tail += text
        if self.cut():
            return self.end("stop")
        if self.count >= self.limit:
            return self.end("length")
        held = 0
        for stop in self.stop:
            for n in range(1, len(stop)):
                if self.tail.endswith(stop[:n]):
                    held = max(held, n)
        out = self.tail[: len(self.tail) - held]
        self.tail = self.tail[len(out) :]
        return self.piece(out)

    def cut(self):
        places = [self.tail.find(stop) for stop in self.stop if stop in self.tail]
        if places:
            self.tail = self.tail[: min(places)]
            self.waiting = []
        return bool(places)

    def end(self, reason):
        self.finished = True
        # an unfinished character stays in the stream, and so does a whole one before it
        self.tail += self.tokenizer.decode(self.waiting, skip_special_tokens=True).rstrip("\ufffd")
        if self.cut():
            reason = "stop"
        return self.piece(self.tail, reason)

    def piece(self, text, reason=None):
        return Piece(text, self.prompt_tokens, self.count, reason)
