# a right answer: the answer is bytes until it comes out; stop sequences are bytes, too; random.Random draws
import itertools
import math
import random
from dataclasses import dataclass

from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}


@dataclass
class Piece:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


def whole_characters(data):
    """How many of these bytes are whole characters."""
    for missing in range(1, min(4, len(data)) + 1):
        first = data[-missing]
        if first < 0x80:
            return len(data)
        if first >= 0xC0:
            length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
            return len(data) if missing >= length else len(data) - missing
    return len(data)


class Sequence:
    def __init__(
        self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()
    ):
        self.tokenizer = tokenizer
        self.specials = set(tokenizer.all_special_ids)
        self.prompt_tokens, self.limit, self.ends = len(prompt_ids), limit, set(eos_token_ids)
        self.temperature, self.top_p = temperature, top_p
        self.stops = [each.encode() for each in stop]
        self.random = random.Random(seed)
        self.data = b""
        self.chosen = 0
        self.reason = None

    finished = property(lambda self: self.reason is not None)

    def take(self, logits):
        self.token = self.draw(logits) if self.temperature else int(logits.argmax())
        self.chosen += 1
        if self.token in self.ends:
            self.reason = "stop"
        elif self.token not in self.specials:
            self.data += b"".join(BYTES[each] for each in self.tokenizer.convert_ids_to_tokens(self.token))
        places = [place for stop in self.stops if (place := self.data.find(stop)) != -1]
        if places:
            self.data, self.reason = self.data[: min(places)], "stop"
        elif self.reason is None and self.chosen == self.limit:
            self.reason = "length"
        ready = whole_characters(self.data)
        if self.reason is None:
            ready = min(ready, len(self.data) - self.kept_for_a_stop())
        out, self.data = self.data[:ready], self.data[ready:]
        return Piece(out.decode(), self.prompt_tokens, self.chosen, self.reason)

    def kept_for_a_stop(self):
        longest = max(map(len, self.stops), default=1)
        for count in range(min(longest - 1, len(self.data)), 0, -1):
            if any(stop.startswith(self.data[-count:]) for stop in self.stops):
                # only whole characters: a byte in the middle of one begins no stop sequence
                return count
        return 0

    def draw(self, logits):
        values, order = (each.tolist() for each in logits.sort(descending=True))
        weights = [math.exp((each - values[0]) / self.temperature) for each in values]
        enough = self.top_p * math.fsum(weights)
        sums = list(itertools.accumulate(weights))
        count = next((at for at, each in enumerate(sums, 1) if each >= enough), len(order))
        [token] = self.random.choices(order[:count], cum_weights=sums[:count])
        return token
