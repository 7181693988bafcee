"""What the lessons show: of tokens, in a browser, and where a program is missing."""

import asyncio
import json
import shutil
from collections import namedtuple
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from IPython.display import IFrame
from transformers import AutoTokenizer

from course.demos import judge
from course.demos.plots import loads, token_bytes, token_line, token_table
from course.demos.servers import in_a_thread
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


def test_loads_are_marked_where_they_were_measured(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("agg")
    run = [SimpleNamespace(clients=clients, ttft_p95_s=0.1, tokens_per_s=9.0) for clients in (1, 4, 16)]
    loads({"a": run, "b": run[:2]})
    assert [list(axes.get_xticks()) for axes in plt.gcf().axes] == [[1, 4, 16]] * 2
    plt.close()


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
        "create_app": create_app,
        "Parrot": object,
        "in_a_thread": in_a_thread,
        "HTMLResponse": HTMLResponse,
        "IFrame": IFrame,
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


@pytest.mark.parametrize("notebook, id", [("stage2a_streaming", "curl"), ("stage2b_limits_and_sockets", "with-redis")])
def test_a_program_that_is_missing_is_named_and_not_needed(notebook, id, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    cell = {
        "shutil": shutil,
        "create_app": lambda handler: FastAPI(),
        "Parrot": object,
        "in_a_thread": in_a_thread,
    }
    exec(source(notebook, id), cell)
    assert capsys.readouterr().out.startswith("There is no ")


@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("ratios, said", [([1.2, 2.7], "true here"), ([0.4, 1.0], "false here")])
def test_nothing_is_judged_on_a_busy_computer(ratios, said, when, capsys):
    cell = {}
    exec(source("stage2c_workers_and_measuring", "verdict"), cell)
    for share in (0.05, 0.64):
        watch = judge.Watch()
        setattr(watch, when, share)
        cell["verdict"]("a claim", ratios, watch)
    idle, busy = capsys.readouterr().out.splitlines()[1::2]
    figures = f"{min(ratios):.2f} to {max(ratios):.2f} times: "
    assert idle.strip() == figures + said
    assert busy.strip().startswith(figures + "no verdict") and "64% " in busy and "again" in busy
    assert "true" not in busy and "false" not in busy


def test_one_run_is_not_judged(capsys):
    cell = {}
    exec(source("stage2c_workers_and_measuring", "verdict"), cell)
    cell["verdict"]("a claim", [3.0], judge.Watch())
    assert "3.00 to 3.00 times: no verdict" in capsys.readouterr().out


def test_what_this_process_and_its_own_compute_is_not_elsewhere(monkeypatch):
    """The system's clock says that one second of CPU was used, all of it by this process or its child."""
    everything, own, children = [100.0], [2.0], [3.0]
    times = namedtuple("times", "user system idle guest")
    monkeypatch.setattr(judge.psutil, "cpu_times", lambda: times(everything[0] + 7.0, 3.0, 500.0, 7.0))
    monkeypatch.setattr(judge.os, "times", lambda: (own[0], 0.0, 0.0, 0.0, 0.0))
    child = SimpleNamespace(cpu_times=lambda: (children[0], 0.0, 0.0, 0.0))
    family = SimpleNamespace(children=lambda recursive: [child])
    monkeypatch.setattr(judge.psutil, "Process", lambda: family)
    before = judge.cpu_elsewhere()
    everything[0], own[0], children[0] = 101.0, 2.4, 3.6
    assert judge.cpu_elsewhere() == pytest.approx(before)
    everything[0] = 101.5
    assert judge.cpu_elsewhere() == pytest.approx(before + 0.5)


def test_a_computer_is_watched_before_during_and_after(monkeypatch):
    used, cores = iter([0.0, 0.3, 0.3, 0.9, 0.9, 0.9]), 2
    clock = iter([0.0, 0.3, 1.0, 2.0, 3.0, 3.3])
    monkeypatch.setattr(judge, "cpu_elsewhere", lambda: next(used))
    monkeypatch.setattr(judge.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(judge.os, "cpu_count", lambda: cores)
    with judge.watched() as watch:
        pass
    assert (watch.before, watch.during, watch.after) == pytest.approx((0.5, 0.3, 0.0))
    assert watch.busy
