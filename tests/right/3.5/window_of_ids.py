# a right answer: a window of ids is decoded twice, with and without the new one; stops are found in the whole text
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


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer, self.prompt_ids = tokenizer, prompt_ids
        self.limit, self.eos_token_ids, self.stop = limit, eos_token_ids, stop
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator()
        if seed is not None:
            self.generator.manual_seed(seed)
        else:
            self.generator.seed()
        self.ids = []
        self.start = self.read = 0
        self.text = ""
        self.sent = 0
        self.finished = False

    def take(self, logits):
        self.token = choose(logits, self.temperature, self.top_p, self.generator)
        self.ids.append(self.token)
        reason = None
        if self.token in self.eos_token_ids:
            reason = "stop"
            self.text += self.rest(self.ids[:-1])
        else:
            before = self.decode(self.ids[self.start : self.read])
            now = self.decode(self.ids[self.start :])
            if not now.endswith("\ufffd"):
                self.text += now[len(before) :]
                self.start, self.read = self.read, len(self.ids)
            if len(self.ids) == self.limit:
                reason = "length"
                self.text += self.rest(self.ids)
        begin = None
        for stop in self.stop:
            at = self.text.find(stop, max(0, self.sent))
            if at != -1 and (begin is None or at < begin):
                begin = at
        if begin is not None:
            self.text, reason = self.text[:begin], "stop"
        end = len(self.text)
        if reason is None:
            end = next(
                (at for at in range(self.sent, end) if any(s.startswith(self.text[at:]) for s in self.stop)),
                end,
            )
        new, self.sent = self.text[self.sent : end], end
        self.finished = reason is not None
        return Piece(new, len(self.prompt_ids), len(self.ids), reason)

    def rest(self, ids):
        before = self.decode(ids[self.start : self.read])
        return self.decode(ids[self.start :])[len(before) :].rstrip("\ufffd")

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
