"""What the lessons show of tokens."""

import pytest
from transformers import AutoTokenizer

from course.lessons.show import token_bytes, token_line, token_table
from course.qwen import TINY

TEXTS = ["Streaming Qwen: 你好 👋🏽", "naïve\n\n  x", "<b>&", "<|im_start|>user\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_all_tokens_are_the_text(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert b"".join(token_bytes(tokenizer, id) for id in ids) == text.encode()


def test_a_table_has_a_row_for_each_token(tokenizer):
    ids = tokenizer(TEXTS[0])["input_ids"]
    lines = repr(token_table(tokenizer, TEXTS[0])).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == ids
    assert token_table(tokenizer, TEXTS[0])._repr_html_().count("<tr>") == len(ids) + 1


def test_the_tokens_of_one_character_share_a_box(tokenizer):
    ids = tokenizer("👋")["input_ids"]
    assert len(ids) > 1
    assert repr(token_line(tokenizer, ids)) == f"[👋|{len(ids)} tokens]"
    cut = token_line(tokenizer, ids[:-1])._repr_html_()
    assert cut.count("<span") == 1 and "\N{REPLACEMENT CHARACTER}" in cut


def test_what_a_user_types_is_no_html(tokenizer):
    assert "<b>" not in token_line(tokenizer, "<b>")._repr_html_()
    assert "<b>x" not in token_table(tokenizer, "<b>x")._repr_html_()


def test_only_control_tokens_are_dark(tokenizer):
    shown = token_line(tokenizer, "<|im_start|>user")._repr_html_()
    assert shown.count("color:#fff") == 1
