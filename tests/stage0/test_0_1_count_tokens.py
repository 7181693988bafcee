"""0.1: the tokenizer decides what a token is, not blanks, characters or bytes."""

from course.grading.kit.tokenizers import merge_newlines
from course.grading.mistakes import fail, require

LONG = "one more word " * 15_000
"""More tokens than any limit that an answer may have in mind."""


def count(answer, inside, texts, merges_newlines=False):
    tokenizer = inside.tiny[1]
    if merges_newlines:
        tokenizer = merge_newlines(tokenizer)
    return {
        "counts": [inside.outcome(answer.count_tokens, tokenizer, text) for text in texts],
        "expected": [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts],
    }


def compare(room, texts, mistake, **tokenizer):
    seen = room.play(count, texts=texts, **tokenizer)
    for text, counted, expected in zip(texts, seen["counts"], seen["expected"], strict=True):
        if "raised" in counted:
            fail(
                f"count_tokens raised {counted['raised'][0]}",
                sent=f"count_tokens(tokenizer, {text!r})",
                expected=expected,
                got=counted["said"],
                where=counted["where"],
            )
        require(
            counted["value"] == expected and type(counted["value"]) is int,
            mistake,
            sent=f"count_tokens(tokenizer, {text!r})",
            expected=expected,
            got=counted["value"],
        )


def test_counts_what_the_tokenizer_makes(room):
    compare(
        room,
        ["What is a token?", "Tokenization isn't about blanks.", "unbelievably streaming"],
        "the result is not the number of tokens: call the tokenizer, which returns the ids",
    )
    compare(
        room,
        ["  Hi there \n", "\r\n"],
        "leading and trailing spaces and newlines are not counted: they are tokens, too",
    )
    compare(room, [LONG], "a long text is truncated: count all of its tokens")
    paragraphs = ["One paragraph\n\nAnother\n\nThe last"]
    mistake = "the text is split before it is counted: a single token can contain two newlines"
    compare(room, paragraphs, mistake, merges_newlines=True)
    compare(room, paragraphs, "the count comes from a different tokenizer: always use the one you are given")


def test_counts_chinese_and_repeated_tokens(room):
    compare(
        room,
        ["你好，你能做什么？", "the the the the", "a\n\n  b 👍🏽"],
        "the result is not the number of tokens in this text: count every id",
    )


def test_an_empty_text_has_no_tokens(room):
    compare(room, [""], "the result for empty text is not 0: do not add any tokens")
