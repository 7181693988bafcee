"""The rules of an answer in the making, as 3.5 states them: driven by `take` in 3.5, by `chat` in 3.6.

A rule is a function of a Driver, which has asks answered: `drive(ask("one two", limit=1))` gives one Answer.
A rule looks at its own matter only: whether the text is right is one rule's concern, the counts are another's.
"""

import functools
import re
from dataclasses import dataclass

from course.grading.mistakes import fail, require

PIECE = ("text", "prompt_tokens", "completion_tokens", "finish_reason")
END, CONTROL, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
COUNTING = "one two three four five six"
WORDS = 60
"""How many plain words can be drawn from."""


def ask(*says, limit=200, limit_after=None, ends=None, draws=None, prompt=1, **options):
    """Asks for one answer.

    Args:
        says: the model's tokens: text is cut as the tokenizer cuts it, bytes are one token. Then the end's token
            repeats.
        limit: in tokens. limit_after: as `limit`, but in parts of `says`: the tokens of so many parts.
        ends: texts of tokens, each of which ends the answer; None for the checkpoint's own.
        draws: the logits of the first plain words, at each step, instead of `says`; other tokens are never drawn.
        prompt: how many times the prompt's question is asked in it.
        options: stop, temperature, top_p, seed.
    """
    says = [list(part) if isinstance(part, bytes) else part for part in says]
    asked = {"says": says, "limit": limit, "limit_after": limit_after}
    return {**asked, "ends": ends, "draws": draws, "prompt": prompt, "options": options}


# in the room


def prepared(tokenizer, ask, ends):
    """The ask with ids for texts. `ends`: the checkpoint's own."""
    ids, counts = [], []
    for part in ask["says"]:
        ids += ids_of(tokenizer, part)
        counts.append(len(ids))
    if ask["ends"] is not None:
        ends = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[0] for text in ask["ends"]]
    limit = counts[ask["limit_after"] - 1] if ask["limit_after"] else ask["limit"]
    so_far = [tokenizer.decode(ids[:count], skip_special_tokens=True) for count in range(len(ids) + 1)]
    values = dict(zip(plain_words(tokenizer).values(), ask["draws"], strict=False)) if ask["draws"] else {}
    return {**ask, "ids": ids, "limit": limit, "ends": ends, "so_far": so_far, "values": values}


def ids_of(tokenizer, part):
    if isinstance(part, str):
        return tokenizer(part)["input_ids"]
    letters = [_LETTER_OF_BYTE[byte] for byte in part]
    whole = tokenizer.convert_tokens_to_ids("".join(letters))
    return tokenizer.convert_tokens_to_ids(letters) if whole is None else [whole]


@functools.cache
def plain_words(tokenizer):
    """{word: id} of WORDS tokens that are a blank and a word."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return dict([(word[1:], id) for word, id in vocabulary if re.fullmatch("Ġ[a-z]{3,}", word)][:WORDS])


def drawn(tokenizer, text):
    """The numbers of the plain words in the text."""
    words = list(plain_words(tokenizer))
    longest_first = "|".join(sorted(words, key=len, reverse=True))
    return [words.index(word) for word in re.findall(longest_first, text)]


def as_piece(inside, piece):
    """A piece as JSON; what is not there is None, and one of `missing`."""
    found = {name: inside.plain(getattr(piece, name, None)) for name in PIECE}
    if isinstance(piece, str):
        found["text"] = str(piece)  # so that what it says is judged all the same
    return {**found, "type": type(piece).__name__, "missing": [name for name in PIECE if not hasattr(piece, name)]}


def _letter_of_byte():
    # the byte-level alphabet: a printable byte is its own letter, any other one of those from U+0100 on
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(rest)}


_LETTER_OF_BYTE = _letter_of_byte()


# in the test


@dataclass
class Answer:
    sent: str
    stop: list
    pieces: list
    """Dicts of a Piece's four attributes."""
    so_far: list
    """What the first 0, 1, 2, ... tokens of `says` say; a cut character is U+FFFD there."""
    drawn: list
    """The numbers of the words that were drawn."""
    prompt_tokens: int
    count: int | None
    """How many tokens were chosen; None where nothing but the pieces says so."""

    @property
    def said(self):
        return "".join(piece["text"] for piece in self.pieces if isinstance(piece["text"], str))

    @property
    def last(self):
        return self.pieces[-1] if self.pieces else dict.fromkeys(PIECE)

    def says(self, expected):
        """Whether that is its text. Lost blanks are the concern of one rule only."""
        return self.said == expected or solid(self.said) == solid(expected) and len(self.said) < len(expected)

    def facts(self, expected):
        return {"sent": self.sent, "expected": repr(expected), "got": repr(self.said)}


def solid(text):
    """The text without blanks."""
    return "".join(text.split())


class Driver:
    """Has asks answered by the exercise's own way."""

    call, gives = "Sequence", "take returns"
    limit, ends = "limit", "eos_token_ids"
    """What the two are called there."""

    def __init__(self, room):
        self.room = room

    def play(self, asks, at_once, disturbed):
        """A list of {"pieces", "so_far", "drawn", "prompt_tokens", "count", "limit", "raised"}."""
        raise NotImplementedError

    def __call__(self, *asks, at_once=False, disturbed=False):
        """Answers to the asks, one after another, or all at once. `disturbed`: torch's and Python's global
        generators are seeded between two tokens."""
        found = []
        for each, result in zip(asks, self.play(list(asks), at_once, disturbed), strict=True):
            sent = self.shown({**each, "limit": result.pop("limit")}) + (
                f", and {len(asks) - 1} others at the same time" if at_once else ""
            )
            if raised := result.pop("raised", None):
                fail(
                    f"{self.call} raises {raised['raised'][0]}: {raised['message']}".rstrip(": "),
                    sent=sent,
                    where=raised["where"],
                )
            found.append(Answer(sent=sent, stop=each["options"].get("stop", []), **result))
        return found

    def one(self, ask):
        return self(ask)[0]

    def shown(self, ask):
        options = dict(ask["options"])
        if ask["limit"] < 200:
            options[self.limit] = ask["limit"]
        if ask["ends"]:
            options[self.ends] = ask["ends"]
        options = ", ".join(f"{name}={value!r}" for name, value in options.items())
        parts = [bytes(part) if isinstance(part, list) else part for part in ask["says"]]
        said = " | ".join(repr(part) for part in parts) if parts else "(nothing)"
        if ask["draws"]:
            said = f"one of {len(ask['draws'])} words at each step"
        return f"{self.call}(..., {options}); the model says {said}"


def must_be_out(so_far, stop=()):
    """What has to be out after these tokens: all up to the last blank, newline or ideograph, but for what a
    stop sequence may still begin with. A text that ends in a cut character may wait as a whole."""
    text = next(text for text in reversed(so_far) if not text.endswith("\ufffd"))
    breaks = [at for at, each in enumerate(text, 1) if each in " \n" or "\u4e00" <= each <= "\u9fff"]
    return text[: min(max(breaks, default=0), len(text) - may_begin(text, stop))]


def may_begin(text, stop):
    """How many characters at the text's end a stop sequence may begin with."""
    for count in range(len(text), 0, -1):
        if any(each != text[-count:] and each.startswith(text[-count:]) for each in stop):
            return count
    return 0


# the rules: text


def what_comes_is_pieces(drive):
    for answer in drive(ask("one 龘 two"), ask("one ", "S", "T", "!", stop=["STOP"])):
        for piece in answer.pieces:
            require(
                not piece["missing"],
                f"what {drive.gives} is not a Piece",
                sent=answer.sent,
                expected=f"an object with {', '.join(PIECE)}",
                got=f"{piece['type']}, without {', '.join(piece['missing'])}",
            )
            require(isinstance(piece["text"], str), "a piece's text is not a str", sent=answer.sent, got=piece["text"])


def the_texts_joined_are_the_answer(drive):
    texts = [" It is  so . \n", "Yes, two.\n\n- one", "\n", f"one{CONTROL} two{CONTROL}"]
    for answer, text in zip(drive(*map(ask, texts)), texts, strict=True):
        said, expected = answer.said, text.replace(CONTROL, "")
        if "<|" in said:
            fail("special tokens are in the output: skip_special_tokens=True leaves them out", **answer.facts(expected))
        mistake = "the joined texts are not what the model said"
        if solid(said) == solid(expected):
            mistake = "spaces or newlines are lost: a piece's text must come out unchanged"
        require(said == expected, mistake, **answer.facts(expected))


def no_character_is_broken(drive):
    text = "你好，龘。これはペン안녕👍🏽👩‍👧 é"
    answer = drive.one(ask(text))
    if "\ufffd" in answer.said:
        fail(
            "some characters are broken: a token may end inside one, so it cannot be decoded alone",
            **answer.facts(text),
        )
    require(answer.says(text), "characters are lost on the way", **answer.facts(text))


def a_cut_character_is_left_out(drive):
    cut = [
        (ask("No", b"\xe9", limit_after=2), "No"),
        (ask("No", b"\xe9", b"\xbe", limit_after=3), "No"),
        (ask("No", b"\xf0\x9f"), "No"),
        (ask("No", b"\xf0", b"\x9f", b"\x98", "!", limit_after=4), "No"),
    ]
    for answer, expected in asked(drive, cut):
        require(
            "\ufffd" not in answer.said,
            "a character cut off by the end of the answer comes out broken: leave it out",
            **answer.facts(expected),
        )
        require(answer.said != "", "the text before a cut-off character is lost", **answer.facts(expected))


def whole_characters_before_a_cut_one_come_out(drive):
    cut_token, zero_width_joiner = "服务".encode()[:5], "\u200d"
    cut = [
        (ask("一", "一", cut_token, limit_after=3), "一一", "服"),
        (ask("一", cut_token), "一", "服"),
        (ask("a", "b", b"\xe2", b"\x80", b"\x8d\xf0\x9f", limit_after=5), "ab", zero_width_joiner),
    ]
    for answer, (_, before, whole) in zip(drive(*(each[0] for each in cut)), cut, strict=True):
        # a broken character has a test
        require(
            answer.said.rstrip("\ufffd") != before,
            "a whole character is lost: it ends in the token in which a cut-off one begins",
            **answer.facts(before + whole),
        )


def asked(drive, cases):
    """[(answer, expected), ...] for (ask, expected)."""
    return zip(drive(*(ask for ask, _ in cases)), (expected for _, expected in cases), strict=True)


# the rules: the end


def the_limit_ends_the_answer(drive):
    for limit in (2, 3):
        answer = drive.one(ask(COUNTING, limit=limit))
        said = solid(answer.said).rstrip("\ufffd")
        counts = [count for count, text in enumerate(answer.so_far) if said.endswith(solid(text))]
        require(
            max(counts) == limit,
            f"the answer does not have `{drive.limit}` tokens",
            sent=answer.sent,
            expected=f"{limit} tokens",
            got=f"{max(counts)} tokens" if max(counts) else repr(answer.said),
        )


def the_ends_token_ends_the_answer_without_text(drive):
    cases = [
        (ask("one two", " token", " three", ends=[END, " token"]), "one two"),
        (ask("one two", " token", " three", ends=[" token", END]), "one two"),
        (ask("one", END, " two", " token", " three", ends=[" model", " token"], limit=9), "one two"),
        (ask("one", PAD, " two", " token", " three", ends=[" token", END], limit=9), "one two"),
    ]
    for answer, expected in asked(drive, cases):
        said, facts = answer.said, answer.facts(expected)
        if said.startswith(f"{expected} token"):
            if said == f"{expected} token":
                fail("the end token appears in the text: leave it out, whichever one it is", **facts)
            fail(f"a token in `{drive.ends}` does not end the answer", **facts)
        if len(said) < len(expected) and expected.startswith(said):
            fail(f"a token that is not in `{drive.ends}` ends the answer", **facts)


def finish_reason_says_why(drive):
    chosen, cut = "the end token was chosen", f"`{drive.limit}` tokens were chosen without an end token"
    last = "the last allowed token is the end token"
    cases = [
        (ask("one", " two"), "one two", "stop", chosen),
        (ask("one", " two", " token", limit_after=2), "one two", "length", cut),
        (ask("one", " two", limit_after=1), "one", "length", cut),
        (ask("one", " two", END, limit_after=3), "one two", "stop", last),
        (ask(END, limit_after=1), "", "stop", last),
        (ask("one", " two", " three", stop=[" two"]), "one", "stop", "a stop sequence is complete"),
        (
            ask("one", " model", " two", "!", stop=[" two"], limit_after=3),
            "one model",
            "stop",
            "the last token completes a stop sequence",
        ),
        (ask("one", " two", stop=[" two!"], limit_after=2), "one two", "length", "no stop sequence is complete"),
    ]
    for answer, (_, text, expected, why) in zip(drive(*(each[0] for each in cases)), cases, strict=True):
        if not answer.says(text):
            continue  # it ended elsewhere, or its text is wrong: another rule's concern
        got = answer.last["finish_reason"]
        mistake = f'finish_reason is not "{expected}" when {why}'
        if got == "stop" and expected == "length":
            mistake = 'finish_reason is "stop" for an answer that was cut off: it should be "length"'
        elif got == "length":
            mistake = f'finish_reason is "length" when {why}: it should be "stop"'
        elif got is None:
            mistake = f"the last piece has no finish_reason when {why}"
        require(got == expected, mistake, sent=answer.sent, expected=expected, got=got or "None")


def only_the_last_piece_has_a_finish_reason(drive):
    for answer in drive(ask("one two\nthree"), ask(COUNTING, limit=3), ask("one", " two", "!", stop=["!"])):
        early = [piece for piece in answer.pieces[:-1] if piece["finish_reason"] is not None]
        require(
            not early,
            "a piece has a finish_reason, but more pieces follow: it should be None until the last",
            sent=answer.sent,
            expected="finish_reason=None",
            got=early[0] if early else None,
        )


# the rules: stop sequences


def a_stop_sequence_ends_the_answer(drive):
    cases = [
        (ask("one", " two", " three", stop=[" two"]), "one"),
        (ask("one", " token", " two", stop=["ok"]), "one t"),
        (ask("one", " small", " two", stop=["l"]), "one sma"),
        (ask("one", " two", " model", " three", stop=["zero", "four", " model", "!"]), "one two"),
    ]
    require_cut(drive, cases, "the answer goes on after a stop sequence")


def a_stop_sequence_in_several_tokens_ends_the_answer(drive):
    cases = [
        (ask("one ", "S", "T", "O", "P", " two", stop=["STOP"]), "one "),
        (ask("one", " E", "N", "D", " two", stop=[" END"]), "one"),
        (ask("one", "\n", "\n", "two", stop=["\n\n"]), "one"),
        (ask("一", b"\xe9", b"\xbe", b"\x98", "二", stop=["龘"]), "一"),
        (ask("one", " tok", "en", "!", " two", stop=["oken!"]), "one t"),
        (ask("one ", "ST", CONTROL, "OP", " two", stop=["STOP"]), "one "),
        (ask("one ", "S", "T", "O", "P", " two", stop=["zero!", "four!", "six!", "STOP"]), "one "),
    ]
    require_cut(drive, cases, "a stop sequence that arrives in several tokens does not end the answer")


def a_stop_sequence_after_its_own_beginning_is_found(drive):
    cases = [
        (ask("one ", "S", "S", "T", "O", "P", " two", stop=["STOP"]), "one S"),
        (ask("one ", b"a", b"a", b"a", b"b", " two", stop=["aab"]), "one a"),
        (ask("one", "\n", " ", "\n", "!", " two", stop=["\n \n !", "\n!"]), "one\n "),
    ]
    require_cut(drive, cases[:2], "a stop sequence is missed when its own beginning comes right before it")
    require_cut(drive, cases[2:], "a stop sequence is missed when another one could have begun before it")


def require_cut(drive, cases, goes_on):
    """Requires the texts, which stop sequences cut."""
    for answer, expected in asked(drive, cases):
        said, facts = answer.said, answer.facts(expected)
        if answer.says(expected):
            continue
        with_it = next(text for text in answer.so_far if any(stop in text for stop in answer.stop))
        if len(said) > len(with_it):
            fail(goes_on, **facts)
        if any(stop in said for stop in answer.stop):
            fail("the stop sequence itself is in the text: the answer should end before it", **facts)
        if said.startswith(expected):
            fail("a stop sequence leaks: its beginning comes out before the rest arrives", **facts)
        fail("the text before a stop sequence is lost", **facts)


def what_only_looked_like_a_stop_sequence_comes_out(drive):
    mistake = "text is lost: it looked like the beginning of a stop sequence"
    goes_on = [
        (ask("one ", "S", "T", "O", " two", stop=["STOP"]), "one STO two"),
        (ask("one ", "S", "T", "ART", " two", stop=["STOP", "TAR!"]), "one START two"),
    ]
    for answer, expected in asked(drive, goes_on):
        lost = not answer.says(expected) and answer.said.endswith("two")
        require(not lost, f"{mistake}, but was not one", **answer.facts(expected))
    ends = [
        (ask("one ", "S", "T", "O", stop=["STOP"]), "one STO"),
        (ask("one ", "S", "T", "O", "P", stop=["STOP"], limit_after=4), "one STO"),
        (ask("one ", "S", b"\xf0\x9f", stop=["STOP"], limit_after=3), "one S"),
        (ask("one ", "S", "T", "x", " two", stop=["STOP", "x"]), "one ST"),
    ]
    for answer, expected in asked(drive, ends):
        require(answer.said != "one ", f"{mistake} when the answer ended", **answer.facts(expected))
    for stop, taken in (
        (" TWO", "stop sequences are matched without regard to case"),
        ("t.o", "a stop sequence is treated as a pattern: match its characters literally"),
    ):
        answer = drive.one(ask("one", " two", " three", stop=[stop]))
        require(answer.said not in ("one", "one "), taken, **answer.facts("one two three"))


def the_stop_sequence_that_begins_first_counts(drive):
    cases = [
        (ask("one", " token", " two", stop=["ken", "tok"]), "one ", "one to"),
        (ask("two", " token", " two", stop=["n", "ok"]), "two t", "two toke"),
    ]
    for answer, (_, expected, first_in_the_list) in zip(drive(*(each[0] for each in cases)), cases, strict=True):
        # one that does not end the answer there is another rule's concern
        require(
            answer.said != first_in_the_list,
            "when one token completes two stop sequences, the first in the list counts:"
            " it should be the one that begins first",
            **answer.facts(expected),
        )
    answer = drive.one(ask(b"a", b"b", b"c", b"d", " two", stop=["abcd", "bc"]))
    mistake = (
        "a stop sequence is complete, but the answer goes on in case a longer one that began earlier is completed, too"
    )
    require(answer.said not in ("abc", "") or answer.last["completion_tokens"] == 3, mistake, **answer.facts("a"))


# the rules: counts


def the_counts_are_those_of_tokens(drive):
    whole = "這龘 is  one"
    answers = drive(ask(whole), ask("one ", "S", "T", "O", "P", stop=["STOP"]), ask(COUNTING, limit=3))
    for answer in answers:
        for piece in answer.pieces:
            require(
                piece["prompt_tokens"] in (answer.prompt_tokens, None),
                "prompt_tokens is not the number of ids in the prompt",
                sent=answer.sent,
                expected=answer.prompt_tokens,
                got=piece["prompt_tokens"],
            )
    # how many were chosen before the end's is known where the text is right; if it is not, that is another matter
    whole_answer, stopped, cut = answers
    counts = [
        (whole_answer, len(whole_answer.so_far), whole),
        (stopped, len(stopped.so_far) - 1, "one "),
        (cut, 3, None),
    ]
    for answer, expected, text in counts:
        expected = answer.count if answer.count is not None else expected
        if not answer.says(answer.so_far[3] if text is None else text):
            continue
        got = answer.last["completion_tokens"]
        mistake = "completion_tokens is not the number of tokens that were chosen"
        if got == expected - 1:
            mistake += ": the last one counts, too, whether it has text or not"
        require(got == expected and type(got) is int, mistake, sent=answer.sent, expected=expected, got=got)


# the rules: choosing


def temperature_0_is_greedy(drive):
    for answer in drive(
        ask(draws=[1.0, 0.99], temperature=0, limit=12), ask(draws=[1.0, 0.99], temperature=0.0, limit=12, seed=3)
    ):
        others = sum(word != 0 for word in answer.drawn)
        require(
            len(answer.drawn) >= 5 and others == 0,
            "at temperature 0, the likeliest token is not always chosen: tokens are still drawn at random",
            sent=answer.sent,
            expected="the likeliest token at each step",
            got=f"{others} of {len(answer.drawn)} tokens were different",
        )


def drawn_from(drive, **asked):
    """(an answer, the words drawn in two answers). None for the words where each answer has one word again and again:
    then each token is drawn with the same random number, which is one rule's concern only."""
    answers = drive(ask(seed=11, **asked), ask(seed=12, **asked))
    words = [word for answer in answers for word in answer.drawn]
    if any(words) and all(len(set(answer.drawn)) == 1 for answer in answers):
        words = None
    return answers[0], words


def tokens_are_drawn_at_the_temperature(drive):
    cases = [
        # at 10 nine of ten are others than the first, at 1 one of a hundred
        ({"temperature": 10.0}, [8.0] + [0.0] * 19, lambda words: sum(word > 0 for word in words) >= 10),
        # at 0.2 nearly half are the second and one of a thousand is another, at 1 more than half are
        (
            {"temperature": 0.2},
            [1.9, 1.85] + [0.0] * 18,
            lambda words: sum(word > 1 for word in words) <= 3 and 1 in words,
        ),
        # three of ten are the first
        ({}, [2.0] + [0.0] * 19, lambda words: 0 < sum(word == 0 for word in words) <= 25),
    ]
    for options, logits, right in cases:
        answer, words = drawn_from(drive, draws=logits, limit=16, **options)
        require(
            words is None or len(words) >= 16 and right(words),
            "the tokens are not drawn at the given temperature"
            if options
            else "without a temperature, tokens are not drawn from the whole vocabulary at temperature 1.0",
            sent=f"{answer.sent}, with the logits {logits[:3]} ...",
            got=f"words numbered {words}",
        )


def tokens_are_drawn_from_top_p(drive):
    thirds = [-0.69, -1.2, -1.9, -3.0]
    cases = [
        ({"top_p": 0.6}, {0, 1}, "0.50 + 0.30 reach top_p"),
        ({"top_p": 0.4}, {0}, "0.50 reaches top_p"),
        ({"top_p": 0.7, "temperature": 2.0}, {0, 1, 2}, "at temperature 2, 0.38 + 0.29 do not reach top_p"),
    ]
    for options, expected, why in cases:
        answer, words = drawn_from(drive, draws=thirds, limit=22, **options)
        require(
            words is None or len(words) >= 20 and set(words) == expected,
            "the tokens are not drawn from the likeliest ones that together reach `top_p`",
            sent=f"{answer.sent}, with probabilities 0.50, 0.30, 0.15, 0.05 at temperature 1",
            expected=f"words numbered {sorted(expected)}: {why}",
            got=f"words numbered {sorted(set(words or []))}",
        )


FLAT = [0.0] * 50


def equal_seeds_draw_alike(drive):
    for seed in (7, 2**32 - 1, 0):
        first, second = (answer.said for answer in drive(*[ask(draws=FLAT, limit=8, seed=seed)] * 2))
        sent = f"{drive.shown(ask(draws=FLAT, limit=8, seed=seed))}, 2 times"
        mistake = "seed 0 is treated as no seed" if seed == 0 else "the same seed does not give the same tokens"
        require(first == second and len(first) > 0, mistake, sent=sent, expected=repr(first), got=repr(second))
    short, longer = ask(draws=FLAT, limit=8, seed=7), ask(draws=FLAT, limit=9, seed=7)
    first, longer_prompt, longer_answer = (answer.said for answer in drive(short, {**short, "prompt": 3}, longer))
    facts = {"sent": f"{drive.shown(short)}, then with a longer prompt", "expected": repr(first)}
    # how many tokens there are is another rule's concern
    alike = longer_prompt.startswith(first) or first.startswith(longer_prompt)
    require(alike, "the tokens drawn with a seed depend on the prompt", **facts, got=repr(longer_prompt))
    facts = {"sent": f"{drive.shown(short)}, then with {drive.limit}=9", "expected": f"{first!r}, and one more token"}
    mistake = f"the tokens drawn with a seed depend on `{drive.limit}`"
    require(longer_answer.startswith(first), mistake, **facts, got=repr(longer_answer))


def each_token_is_drawn_anew(drive):
    for options in ({"seed": 5}, {}):
        answer = drive.one(ask(draws=FLAT, limit=8, **options))
        require(
            len(set(answer.drawn)) > 1 or set(answer.drawn) == {0},
            "each token is drawn with the same random number: the generator is seeded again at each step",
            sent=answer.sent,
            got=repr(answer.said),
        )


def nothing_else_changes_what_a_seed_draws(drive):
    seeded, unseeded = ask(draws=FLAT, limit=8, seed=5), ask(draws=FLAT, limit=8)
    alone = drive.one(seeded).said
    disturbed = drive(seeded, disturbed=True)[0]
    sent = f"{disturbed.sent}, while torch.manual_seed is called elsewhere"
    expected = f"{alone!r}, the same as without the call to torch.manual_seed"
    facts = {"sent": sent, "expected": expected, "got": repr(disturbed.said)}
    require(
        disturbed.said == alone,
        "calling torch.manual_seed elsewhere changes the tokens drawn with a seed: the global generator is used",
        **facts,
    )
    for answer in drive(seeded, unseeded, seeded, at_once=True)[::2]:
        require(
            answer.said == alone,
            "drawing for another answer at the same time changes the tokens drawn with a seed:"
            " the two answers share a generator",
            sent=answer.sent,
            expected=f"{alone!r}, as when it runs alone",
            got=repr(answer.said),
        )


def other_seeds_and_none_draw_differently(drive):
    seeds = [0, 1, 2, 2**31, 2**32 - 1, 1]
    said = {
        seed: answer.said
        for seed, answer in zip(seeds, drive(*(ask(draws=FLAT, limit=8, seed=s) for s in seeds)), strict=True)
    }
    require(
        len(set(said.values())) == len(said),
        "different seeds give the same tokens",
        sent=f"{drive.call}(..., seed=...) for {list(said)}",
        got=list(said.values()),
    )
    unseeded, seeded = ask(draws=FLAT, limit=8), ask(draws=FLAT, limit=8, seed=5)
    for asks, between in (([unseeded] * 3, ""), ([seeded, unseeded] * 2, "; each after an answer with seed=5")):
        answers = [answer for answer, each in zip(drive(*asks), asks, strict=True) if each is unseeded]
        if len({tuple(answer.drawn) for answer in answers}) > 1 and all(
            len(set(answer.drawn)) == 1 for answer in answers
        ):
            continue  # each token is drawn with the same random number: another rule's concern
        answers = [answer.said for answer in answers]
        require(
            len(set(answers)) == len(answers),
            "without a seed, two answers are the same: torch.Generator() always starts with the same seed",
            sent=f"{drive.shown(unseeded)}, {len(answers)} times{between}",
            expected="different answers",
            got=answers,
        )
