# a right answer: the whole answer is one generator that is sent logits
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
        self.token, self.finished = None, False
        source = torch.Generator()
        source.seed() if seed is None else source.manual_seed(seed)
        self.run = self.answer(tokenizer, len(prompt_ids), limit, eos_token_ids, temperature, top_p, source, stop)
        next(self.run)

    def take(self, logits):
        piece = self.run.send(logits)
        self.finished = piece.finish_reason is not None
        return piece

    def answer(self, tokenizer, prompt_tokens, limit, ends, temperature, top_p, source, stops):
        logits = yield
        text = ""
        for number in range(1, limit + 1):
            self.token = choose(logits, temperature, top_p, source)
            if self.token in ends:
                break
            for character in self.characters(tokenizer, self.token):
                text += character
                complete = [stop for stop in stops if text.endswith(stop)]
                if complete:
                    # another one may begin earlier and end in the same token: its characters come next
                    break
            else:
                if number == limit:
                    yield Piece(text, prompt_tokens, number, "length")
                    return
                held = next((n for n in range(len(text), 0, -1) if self.begins(stops, text[-n:])), 0)
                logits = yield Piece(text[: len(text) - held], prompt_tokens, number)
                text = text[len(text) - held :]
                continue
            text += "".join(self.left)
            text = text[: min(text.find(stop) for stop in stops if stop in text)]
            break
        yield Piece(text, prompt_tokens, number, "stop")

    waiting = ()
    left = ()

    def characters(self, tokenizer, id):
        self.waiting = (*self.waiting, id)
        text = tokenizer.decode(list(self.waiting), skip_special_tokens=True)
        given = len(self.waiting_text) if len(self.waiting) > 1 else 0
        whole = text.rstrip("\ufffd")
        self.waiting_text = whole
        if whole == text:
            self.waiting = ()
        self.left = list(whole[given:])
        while self.left:
            yield self.left.pop(0)

    @staticmethod
    def begins(stops, end):
        return any(stop.startswith(end) for stop in stops)
