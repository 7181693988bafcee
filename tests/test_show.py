"""What the lessons show: of tokens, in a browser, and where a program is missing."""

import asyncio
import json
import shutil

import nbformat
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from IPython.display import IFrame
from transformers import AutoTokenizer

from course.lessons.beside import in_a_thread
from course.lessons.show import token_bytes, token_line, token_table
from course.manifest import ROOT
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


def source(notebook, id):
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return next(cell.source for cell in cells if cell.id == id)


def test_the_lesson_on_sse_is_read_by_a_browser_while_it_is_sent(browser):
    seen = asyncio.Event()

    def create_app(handler):
        app = FastAPI()

        @app.post("/chat_stream")
        async def chat_stream(body: dict):
            async def events():
                # an event in two chunks, a comment, a line end of two characters
                yield 'data: {"tok'
                yield 'en": "你好\\n"}\r\n\r\n: ping\r\n\r\n'
                await asyncio.wait_for(seen.wait(), 60)
                yield f"data: {json.dumps({'token': body['prompt']})}\n\n"
                yield 'event: done\ndata: {"pieces": 2}\n\n'

            return StreamingResponse(events(), media_type="text/event-stream")

        @app.get("/seen")
        async def first_piece_was_seen():
            seen.set()

        return app

    cell = {
        "create_app": create_app, "Parrot": object, "in_a_thread": in_a_thread,
        "HTMLResponse": HTMLResponse, "IFrame": IFrame,
    }
    exec(source("stage2a_streaming", "browser"), cell)
    page = browser.new_page()
    page.goto(cell["url"])
    page.locator("#answer", has_text="你好").wait_for()
    page.evaluate("fetch('/seen')")
    page.locator("#answer", has_text="hello|").wait_for()
    assert page.evaluate("answer.textContent") == "你好\nhello|"
    page.close()
    cell["server"].should_exit = True


@pytest.mark.parametrize(
    "notebook, id", [("stage2a_streaming", "curl"), ("stage2b_limits_and_sockets", "with-redis")]
)
def test_a_program_that_is_missing_is_named_and_not_needed(notebook, id, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    cell = {
        "shutil": shutil, "create_app": lambda handler: FastAPI(), "Parrot": object,
        "in_a_thread": in_a_thread,
    }
    exec(source(notebook, id), cell)
    assert capsys.readouterr().out.startswith("There is no ")
