"""Exercise 3.5: one answer in the making, from logits to text that can be shown."""

from dataclasses import dataclass

import torch


# given
@dataclass
class Piece:
    """What can be shown after a step."""

    text: str
    prompt_tokens: int
    """The number of ids in the prompt."""
    completion_tokens: int
    """The number of tokens chosen so far, including the end token."""
    finish_reason: str | None = None
    """"stop" or "length" in the last piece, None in all others."""


# given
def choose(logits, temperature, top_p, generator) -> int:
    """Draw the next token's id from the smallest set of most likely tokens whose probabilities, at
    that temperature, together reach `top_p`. At temperature 0, take the most likely token.

    Args:
        logits: a tensor of shape (vocabulary,).
        generator: the torch.Generator to draw with.
    """
    if temperature == 0:
        return int(logits.detach().numpy().argmax())  # ten times as fast as torch's
    # the largest logit is shifted to 0, so that no temperature is too small to divide by
    probabilities = ((logits - logits.max()) / temperature).softmax(dim=-1)
    ids = None
    if top_p < 1:  # sorting costs more than everything else
        probabilities, ids = probabilities.sort(descending=True, stable=True)
        likelier = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities * (likelier < top_p)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    at = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
    drawn = int(torch.searchsorted(sums, at, right=True))
    return drawn if ids is None else int(ids[drawn])


class Sequence:
    """One answer in the making: what a server keeps for each request. It has no model and no thread.

    The texts of its pieces, joined, are the answer, without special tokens or broken characters. A
    character that is incomplete when the answer ends is left out; whole characters before it are not.
    After each `take`, all text up to and including the last space (U+0020), newline or Chinese
    character has been returned, except for what may still be the beginning of a stop sequence. (If a
    token ends in the middle of a character, all of its text may wait for the rest of that character.
    So if a token contains "一 " and the first byte of "龘", "一 " may wait, too.) Not promised: what
    happens with bytes that do not form a character, and with a U+FFFD that the model itself produces.

    Sequences that share a tokenizer do not interfere with each other, even in different threads. Each
    sequence is used by only one thread at a time. A `take` late in a long answer costs about as much as
    an early one.

    Attributes:
        token: the last id chosen, to be fed to the model next. There is none before the first `take`.
        finished: whether the answer has ended.

    Example:
        >>> sequence = Sequence(tokenizer, ids, limit=100, eos_token_ids=[151645], stop=["\\n\\n"])
        >>> piece = sequence.take(next_logits(ids))
        >>> while not sequence.finished:
        ...     print(piece.text, end="")
        ...     piece = sequence.take(next_logits([sequence.token]))
        >>> print(piece.text)
    """

    def __init__(self, tokenizer, prompt_ids, *, limit, eos_token_ids, temperature=1.0, top_p=1.0, seed=None, stop=()):
        """Args:
        tokenizer: a fast, byte-level one, such as Qwen's.
        prompt_ids: the prompt, a list of ids.
        limit: the maximum number of tokens to choose, at least 1.
        eos_token_ids: a list of ids. Each of them ends the answer and adds no text to it.
        temperature, top_p: as in `choose`.
        seed: 0 to 2**32 - 1. Equal seeds draw the same tokens, whatever else is running or has been seeded;
            different seeds draw differently, and so do sequences without a seed.
        stop: up to four non-empty strings. As soon as the text contains one of them, however it is
            split into tokens, the answer ends with the text before it. If the same token completes
            several, the one that begins first counts. No part of a stop sequence is returned; text
            that only looked like the beginning of one is.
        """
        self.token, self.finished = None, False
        self._tokenizer = tokenizer.backend_tokenizer
        self._prompt_tokens, self._completion_tokens = len(prompt_ids), 0
        self._limit, self._eos_token_ids = limit, eos_token_ids
        self._temperature, self._top_p, self._stop = temperature, top_p, stop
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()  # a new one always begins with the same seed
        else:
            self._generator.manual_seed(seed)
        self._cut, self._cut_text = [], ""
        self._held = ""

    def take(self, logits) -> Piece:
        """Choose the next token and return the text that can be shown now.

        Args:
            logits: the next token's logits, a float tensor of shape (vocabulary,) on the CPU. It is
                not changed.

        Returns:
            The piece. Its text may be empty. The last one has a `finish_reason`: "stop" if one of
            `eos_token_ids` was chosen or a stop sequence is complete, even with the last token
            allowed; "length" if `limit` tokens were chosen without either.
        """
        self.token = choose(logits, self._temperature, self._top_p, self._generator)
        self._completion_tokens += 1
        ended = self.token in self._eos_token_ids
        text = self._held + ("" if ended else self._text_of(self.token))
        begins = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        reason = None
        if begins:
            text, reason = text[: min(begins)], "stop"
        elif ended:
            reason = "stop"
        elif self._completion_tokens == self._limit:
            reason = "length"
        self.finished = reason is not None
        shown = len(text) if self.finished else len(text) - self._may_begin_a_stop(text)
        self._held = text[shown:]
        return Piece(text[:shown], self._prompt_tokens, self._completion_tokens, reason)

    def _text_of(self, token):
        """The characters that the token completes."""
        self._cut.append(token)
        text = self._tokenizer.decode(self._cut, skip_special_tokens=True)
        # a character that lacks some of its bytes is U+FFFD, perhaps several
        whole = text.rstrip("\ufffd")
        new = whole[len(self._cut_text) :]
        self._cut_text = whole
        if whole == text:
            self._cut, self._cut_text = [], ""
        return new

    def _may_begin_a_stop(self, text):
        """How many characters at the end of the text may be the beginning of a stop sequence."""
        most = min(len(text), max(map(len, self._stop), default=0))
        return next((n for n in range(most, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
