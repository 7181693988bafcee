"""What a checkpoint's generation_config may hold, and what a model says if an answer does not obey it.

A case is (settings, temperature, logits, letters): with these logits at each step the answer is made of these letters
alone, or of MANY of them. Letters stand for their tokens' ids, see `with_ids`.

Not covered: rarer settings (typical_p, sequence_bias, watermarks, ...) and stop strings.
"""

import string

END = "<|im_end|>"
MANY = "many"
FIRST = {"x": 30.0, "y": 20.0, "z": 20.0}
FAR = {"s": 20.0, **dict.fromkeys("tuvwxyz", 10.0)}
NEAR = {"s": 2.0, **dict.fromkeys("tuvwxyz", 0.0)}
FLAT = {letter: -0.002 * number for number, letter in enumerate(string.digits + string.ascii_letters)}
"""More letters than the 50 that generate draws from unless it is told otherwise."""

CASES = [
    ({"repetition_penalty": 2.0}, 0.0, FIRST, "x"),
    ({"no_repeat_ngram_size": 2}, 0.0, FIRST, "x"),
    ({"min_new_tokens": 6}, 0.0, {END: 30.0, "x": 20.0}, ""),
    ({"min_length": 1000}, 0.0, {END: 30.0, "x": 20.0}, ""),
    ({"suppress_tokens": ["x"]}, 0.0, FIRST, "x"),
    ({"bad_words_ids": [["x"]]}, 0.0, FIRST, "x"),
    ({"top_k": 1}, 5.0, NEAR, MANY),
    ({"top_p": 0.1}, 5.0, NEAR, MANY),
    ({"min_p": 0.9}, 5.0, NEAR, MANY),
    ({"repetition_penalty": 2.0}, 0.5, FAR, "s"),
    ({"no_repeat_ngram_size": 2}, 0.5, FAR, "s"),
    ({"min_new_tokens": 6}, 0.5, {END: 20.0, "x": 10.0}, ""),
    ({"suppress_tokens": ["s"]}, 0.5, FAR, "s"),
    ({"bad_words_ids": [["s"]]}, 0.5, FAR, "s"),
    # last: a streamer refuses beams, and who waits for it in another thread may wait for ever
    ({"num_beams": 4, "length_penalty": 0.0}, 0.0, {"x": 2.0, END: 1.6}, "x"),
]
MOST_TOKENS = 8


def with_ids(tokenizer, value):
    """The value, with ids in the place of tokens. Names of settings are not tokens."""
    return _with_ids(tokenizer.get_vocab(), value)


def _with_ids(ids, value):
    if isinstance(value, dict):
        return {_with_ids(ids, name): _with_ids(ids, each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_ids(ids, each) for each in value]
    return ids.get(value, value)


def is_made_of(text, letters):
    """Whether the text is made of these letters, as a case says."""
    return len(set(text)) > 1 if letters == MANY else set(text) == set(letters)


def wanted(letters):
    """What is expected of an answer, in words."""
    words = {"": "an empty answer", MANY: "many of the letters"}.get(letters, f"only {letters}")
    return f"{words}, as without that setting"


def obeyed(settings):
    """What is said of an answer that obeys the first of them."""
    name = next(iter(settings))
    return f"the checkpoint's {name} is used: whatever you do not pass to generate comes from its generation_config"
