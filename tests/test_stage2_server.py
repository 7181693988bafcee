"""The lesson server of stage 2 with the reference answers, on a real socket, and its page."""

import asyncio
import json
import re
import signal
import time

import httpx
import psutil
import pytest

from course.lessons.server import serve

STORY = {"prompt": "Tell me a story", "max_new_tokens": 1024}


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LIMIT", "100000/minute")
        with serve(2, solution=True) as server:
            yield server


def steps(server):
    return httpx.get(server.url + "/model").json()["steps"]


def settled(server):
    """The count of forward passes when it no longer changes; a limit only ends a hang."""
    before, until = -1, time.monotonic() + 30
    while time.monotonic() < until:
        now = steps(server)
        if now == before:
            return now
        before = now
        time.sleep(0.1)
    raise AssertionError("the model goes on and on")


def events(response):
    """(event's name, data) of each event, as they come."""
    name = "message"
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
            name = "message"


def test_the_stream_ends_with_the_number_of_its_pieces(server):
    with httpx.stream("POST", server.url + "/chat_stream", json={"prompt": "你好"}) as response:
        *tokens, (last, data) = list(events(response))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(token["token"] for _, token in tokens) == "你好！有什么我能帮助你的吗？"
    assert last == "done" and data["pieces"] == len(tokens) > 1


def test_64_streams_at_once_all_finish_and_the_next_one_too(server):
    async def one(client):
        body = {"prompt": "你好", "max_new_tokens": 8}
        async with client.stream("POST", "/chat_stream", json=body) as response:
            return [line async for line in response.aiter_lines() if line]

    async def many():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client) for _ in range(64))), await one(client)

    answers, after = asyncio.run(many())
    assert all(answer == after for answer in answers) and after[-2] == "event: done"


def test_who_leaves_stops_the_model_200_times_in_a_row(server):
    for _ in range(200):
        with httpx.stream("POST", server.url + "/chat_stream", json=STORY) as response:
            next(events(response))
    settled(server)
    before = steps(server)
    with httpx.stream("POST", server.url + "/chat_stream", json=STORY) as response:
        next(events(response))
    # the prefill, the step of the first piece, one in progress, and at most 5 after the client left
    assert settled(server) - before <= 8
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ""},
        {"prompt": "x" * 4001},
        {"prompt": 7},
        {},
        [],
        {"prompt": "hi", "max_new_tokens": 0},
        {"prompt": "hi", "max_new_tokens": -1},
        {"prompt": "hi", "max_new_tokens": 10**9},
        {"prompt": "hi", "max_new_tokens": "x"},
        {"prompt": "hi", "temperature": -1},
        {"prompt": "hi", "temperature": float("nan")},
        {"prompt": "hi", "temperature": "hot"},
        {"prompt": "x" * 10_000_000},
    ],
    ids=lambda body: json.dumps(body)[:40],
)
def test_what_is_not_allowed_is_refused_in_words(server, body):
    before = steps(server)
    content = json.dumps(body)
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + "/chat_stream", content=content, headers=headers, timeout=30)
    assert 400 <= response.status_code < 500 and response.text
    assert "Traceback" not in response.text and steps(server) == before


def test_sigterm_with_streams_open_ends_the_server(server):
    with serve_another() as other:
        process = psutil.Process(httpx.get(other.url + "/model").json()["pid"])
        with httpx.Client(timeout=60) as client:
            streams = []
            for _ in range(4):
                request = client.build_request("POST", other.url + "/chat_stream", json=STORY)
                streams.append(client.send(request, stream=True))
            process.send_signal(signal.SIGTERM)
            gone, alive = psutil.wait_procs([process], timeout=30)
            assert gone and not alive
            for stream in streams:
                stream.close()


def serve_another():
    """A second server of the same lesson: `serve` would stop the first one."""
    from course.lessons import server

    listener = server._bind("127.0.0.1", 0)
    return server.Server(2, listener, host="127.0.0.1", solution=True, model=None)


def test_the_page_streams_over_both_and_its_stop_stops_the_model(server, browser):
    page = browser.new_page(locale="en-US")
    page.goto(server.url)
    # pressed by the page itself: from out here a whole answer may have come before the click
    page.evaluate(
        """() => new MutationObserver(() => {
            if (document.querySelector("#socket .answer").textContent.length > 10)
                document.querySelector("#socket .stop").click()
        }).observe(document.querySelector("#socket .answer"), {childList: true})"""
    )
    page.fill("#text", "Tell me a story")
    page.click("#send")
    page.wait_for_selector("#sse[data-state=done]", timeout=60_000)
    story = page.inner_text("#sse .answer")
    figures = page.inner_text("#sse .figures")
    assert re.match(r"\d+ pieces · first after [\d.]+ s · \d+ pieces/s$", figures), figures
    page.wait_for_selector("#socket[data-state=stopped]")
    part = page.inner_text("#socket .answer")
    assert story.startswith(part) and len(part) < len(story)
    assert settled(server) == steps(server)

    page.reload()
    page.click("#language")
    assert page.inner_text("h1") == "第 2 阶段：流式输出"
    page.fill("#text", "你好")
    page.click("#send")
    page.wait_for_selector("#socket[data-state=done]", timeout=60_000)
    for transport in ("sse", "socket"):
        assert page.inner_text(f"#{transport} .answer") == "你好！有什么我能帮助你的吗？"
    page.close()
