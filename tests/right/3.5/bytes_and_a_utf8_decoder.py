# a right answer: each token's bytes by the byte-level alphabet, an incremental UTF-8 decoder, stops by regex
import codecs
import re
from dataclasses import dataclass

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode


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


BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer = tokenizer
        self.special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.utf8 = codecs.getincrementaldecoder("utf-8")("ignore")
        self.whole = re.compile("|".join(map(re.escape, stop)) or "(?!)")
        # any beginning of a stop sequence, at the end of the text
        begun = [re.escape(s[:n]) + r"\Z" for s in stop for n in range(1, len(s))]
        self.begun = re.compile("|".join(begun) or "(?!)")
        self.prompt_tokens, self.left, self.eos_token_ids = len(prompt_ids), limit, eos_token_ids
        self.temperature, self.top_p = temperature, top_p
        self.random = torch.Generator()
        self.random.manual_seed(seed) if seed is not None else self.random.seed()
        self.completion_tokens = 0
        self.buffer = ""
        self.finished = False

    def take(self, logits):
        self.token = choose(logits, self.temperature, self.top_p, self.random)
        self.completion_tokens += 1
        self.left -= 1
        reason = "length" if self.left == 0 else None
        if self.token in self.eos_token_ids:
            reason = "stop"
        elif self.token not in self.special:
            letters = self.tokenizer.convert_ids_to_tokens(self.token)
            self.buffer += self.utf8.decode(bytes(BYTE_OF[letter] for letter in letters))
        if found := self.whole.search(self.buffer):
            self.buffer, reason = self.buffer[: found.start()], "stop"
        held = self.begun.search(self.buffer) if reason is None else None
        cut = held.start() if held else len(self.buffer)
        text, self.buffer = self.buffer[:cut], self.buffer[cut:]
        self.finished = bool(reason)
        return Piece(text, self.prompt_tokens, self.completion_tokens, reason)
