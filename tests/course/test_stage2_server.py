"""The lesson server of stage 2 with the reference answers, on a real socket, and its page.

Where a test has to hold the model or look at what is left, the server runs in a thread of this
process (`here`); elsewhere in a process of its own, as `course serve` starts it.
"""

import contextlib
import gc
import json
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served import LIMIT_S, Here, Raw, check_from_outside, settled, steps, wait_for
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from course import grading
from course.lessons import server as lesson_server
from course.lessons import stage2
from course.lessons.server import serve
from course.manifest import find

STORY = {"prompt": "Tell me a story", "max_new_tokens": 1024}

# the servers


@pytest.fixture(scope="module")
def no_limit():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LIMIT", "100000/minute")
        yield


@pytest.fixture(scope="module")
def server(no_limit):
    with serve(2, solution=True) as server:
        yield server
    assert "Traceback" not in server.logs()


@pytest.fixture(scope="module")
def thread(no_limit):
    here = Here(stage2)
    yield here
    here.stop()


@pytest.fixture
def here(thread):
    yield thread
    thread.probe.mend()
    thread.probe.release()
    wait_for(lambda: thread.left() == (0, 0))


# the clients


def events(response):
    """(event's name, data) of each event, as they come."""
    name, until = "message", time.monotonic() + LIMIT_S
    for line in response.iter_lines():
        # pings come for ever, so no timeout of httpx ends a stream
        assert time.monotonic() < until, "the stream does not end"
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
            name = "message"


def sse(url, **body):
    """[(event's name, data), ...] of a whole answer."""
    with httpx.stream("POST", url + "/chat_stream", json=body, timeout=LIMIT_S) as response:
        assert response.status_code == 200
        return list(events(response))


def frames(url, **prompt):
    """The frames of a whole answer over the WebSocket."""
    with connect(url.replace("http", "ws") + "/ws") as ws:
        ws.send(json.dumps(prompt))
        frames = [json.loads(ws.recv())]
        while frames[-1]["type"] == "token":
            frames.append(json.loads(ws.recv()))
        if frames[-1]["type"] == "error":
            with pytest.raises(ConnectionClosedError) as closed:
                ws.recv()
            frames.append(closed.value.rcvd.code)
    return frames


def plain(url, **body):
    return httpx.post(url + "/chat", json=body, timeout=LIMIT_S)


PATH = {"sse": "/chat_stream", "websocket": "/ws", "plain": "/chat"}
WORD = {"sse": b"token", "websocket": b"token", "plain": None}
"""What is in the first piece that a client gets."""


# the tests


def test_the_stream_ends_with_the_number_of_its_pieces(server):
    with httpx.stream("POST", server.url + "/chat_stream", json={"prompt": "你好"}) as response:
        *tokens, (last, data) = list(events(response))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "".join(token["token"] for _, token in tokens) == "你好！有什么我能帮助你的吗？"
    assert last == "done" and data["pieces"] == len(tokens) > 1


def test_64_streams_at_once_all_finish_and_the_next_one_too(here):
    here.say("sixty-four", "all of us", times=3)
    here.probe.hold(1)
    with ThreadPoolExecutor(64) as pool, httpx.Client(limits=httpx.Limits()) as client:

        def one(_):
            body = {"prompt": "sixty-four"}
            request = client.stream("POST", here.url + "/chat_stream", json=body, timeout=LIMIT_S)
            with request as response:
                return list(events(response))

        answers = pool.map(one, range(64))
        wait_for(lambda: len(here.server.server_state.tasks) == 64)
        here.probe.release()
        answers = list(answers)
        after = one(None)
    assert "".join(data["token"] for _, data in after[:-1]) == "all of us" * 3
    assert after[-1][0] == "done" and all(answer == after for answer in answers)


@pytest.mark.parametrize("way", WORD)
def test_who_leaves_stops_the_model_200_times_in_a_row(here, way, caplog):
    prompt, held = f"who leaves {way}", 3
    here.say(prompt, "一", times=800)
    here.say("who stays", "一二三四五六七八九十")

    def one():
        here.probe.hold(held)
        client = Raw(here.address, PATH[way], prompt=prompt, max_new_tokens=800)
        if WORD[way]:
            client.read_to(WORD[way])
        wait_for(lambda: here.probe.report()["held"] == 1)
        client.close()
        # the server knows that the client has left, and nothing runs for it any more
        wait_for(lambda: here.left() == (0, 0))
        here.probe.release()
        wait_for(lambda: here.probe.report()["held"] == 0)

    one()
    threads = set(threading.enumerate())
    for _ in range(199):
        one()
    # were the model still at work for one of them, it would have gone on during this one
    assert plain(here.url, prompt="who stays").json() == {"result": "一二三四五六七八九十"}
    made = here.steps(prompt)
    assert len(made) == 200 and max(made) <= held + 5
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("way", ["sse", "websocket"])
def test_for_a_client_that_never_reads_the_model_waits(squeezed, way):
    prompt = f"never reads {way}"
    squeezed.say(prompt, "一", times=2000)
    squeezed.say("who reads", "一二三四五六七八九十")
    client = Raw(squeezed.address, PATH[way], receive_buffer=4096, prompt=prompt, max_new_tokens=1024)
    wait_for(lambda: squeezed.steps(prompt))
    before, now = None, squeezed.steps(prompt)
    # the model makes its steps in turn: if another one's whole answer comes and this one has not
    # gone on, it waits
    while now != before:
        assert plain(squeezed.url, prompt="who reads").json() == {"result": "一二三四五六七八九十"}
        before, now = now, squeezed.steps(prompt)
    assert now[0] < 1024
    client.read_to(b'"pieces": 1024')
    client.close()
    wait_for(lambda: squeezed.left() == (0, 0))


class SmallBuffers(HttpToolsProtocol):
    """uvicorn's, with less room for what a client has not read; WebSockets begin here too."""

    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(high=1024)
        super().connection_made(transport)


@pytest.fixture(scope="module")
def squeezed(no_limit):
    # a busy computer may take longer than the pings that a client which reads nothing does not answer
    here = Here(stage2, http=SmallBuffers, ws_ping_interval=None)
    yield here
    here.stop()


@pytest.mark.parametrize(
    "text",
    [
        "你好，世界！",
        "ひらがなとカタカナ、かな",
        "한국어",
        "👍🏽",
        "\n\n",
        "\r\n",
        "a\rb",
        "   leading blanks",
        "[DONE]",
        "data:",
        "data: {}\n\nevent: done\ndata: {}\n\n",
        '"quotes" and a \\ backslash',
    ],
    ids=ascii,
)
def test_any_text_comes_whole_and_the_same_on_every_way(here, text):
    here.probe.say(text, when="say it")
    *tokens, (last, done) = sse(here.url, prompt="say it")
    assert "".join(data["token"] for _, data in tokens) == text
    assert {name for name, _ in tokens} == {"message"}
    assert (last, done) == ("done", {"pieces": len(tokens)})

    *tokens, last = frames(here.url, prompt="say it")
    assert "".join(frame["text"] for frame in tokens) == text
    assert last == {"type": "done", "pieces": len(tokens), "stopped": False}

    assert plain(here.url, prompt="say it").json() == {"result": text}


def test_a_model_that_fails_is_an_error_and_no_end(here):
    message = 'a "quote", a \\ and\na newline'
    here.say("it fails", "一二三四五六七八九十")
    here.probe.fail(5, message)
    *tokens, last = sse(here.url, prompt="it fails")
    assert "".join(data["token"] for _, data in tokens) == "一二三四"
    assert {name for name, _ in tokens} == {"message"} and last[0] == "error"
    assert last[1]["message"] and "quote" not in last[1]["message"]

    *tokens, last, code = frames(here.url, prompt="it fails")
    assert "".join(frame["text"] for frame in tokens) == "一二三四"
    assert last == {"type": "error", "message": message} and code == 1011

    response = plain(here.url, prompt="it fails")
    assert response.status_code == 500 and "quote" not in response.text

    here.probe.fail(1, message)
    response = httpx.post(here.url + "/chat_stream", json={"prompt": "it fails"})
    assert response.status_code == 500 and "event-stream" not in response.headers["content-type"]
    assert response.text and "quote" not in response.text

    here.probe.mend()
    *tokens, (last, _) = sse(here.url, prompt="it fails")
    assert len(tokens) == 10 and last == "done"


NOT_ALLOWED = [
    ({"prompt": ""}, "at least 1 character"),
    ({"prompt": "x" * 4001}, "at most 4000 characters"),
    ({"prompt": 7}, "a valid string"),
    ({}, "prompt.*[Ff]ield required"),
    ([], "dictionary or object|send an object"),
    ({"prompt": "hi", "max_new_tokens": 0}, "greater than or equal to 1"),
    ({"prompt": "hi", "max_new_tokens": -1}, "greater than or equal to 1"),
    ({"prompt": "hi", "max_new_tokens": 10**9}, "less than or equal to 1024"),
    ({"prompt": "hi", "max_new_tokens": "x"}, "a valid integer"),
    ({"prompt": "hi", "temperature": -1}, "greater than or equal to 0"),
    ({"prompt": "hi", "temperature": 3}, "less than or equal to 2"),
    ({"prompt": "hi", "temperature": float("nan")}, "a finite number"),
    ({"prompt": "hi", "temperature": "hot"}, "a valid number"),
    ({"prompt": "x" * 10_000_000}, "at most (1,000,000 bytes|4000 characters)"),
]


@pytest.mark.parametrize("path", ["/chat_stream", "/chat"])
@pytest.mark.parametrize(("body", "words"), NOT_ALLOWED, ids=lambda value: json.dumps(value)[:40])
def test_what_is_not_allowed_is_refused_in_words(server, path, body, words):
    before = steps(server)
    content = json.dumps(body)
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + path, content=content, headers=headers, timeout=LIMIT_S)
    assert 400 <= response.status_code < 500
    assert re.search(words, json.dumps(response.json()["detail"])), response.text
    assert len(response.content) < 500 and steps(server) == before


def test_what_is_not_allowed_in_a_frame_is_refused_in_words(server):
    before = steps(server)
    with connect(server.url.replace("http", "ws") + "/ws") as ws:
        for body, words in NOT_ALLOWED:
            ws.send(json.dumps(body))
            frame = json.loads(ws.recv(LIMIT_S))
            assert frame["type"] == "error" and re.search(words, frame["message"]), frame
            assert len(frame["message"]) < 500
        assert steps(server) == before
        ws.send(json.dumps({"prompt": "你好", "max_new_tokens": 1}))
        assert json.loads(ws.recv(LIMIT_S))["type"] == "token"


@pytest.fixture(scope="module")
def limited():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_LIMIT", "3/day")
        # `serve` would stop the other tests' server
        listener = lesson_server._bind("127.0.0.1", 0)
        server = lesson_server.Server(2, listener, host="127.0.0.1", solution=True, model=None)
    with server:
        yield server
    assert "Traceback" not in server.logs()


def test_a_prompt_over_the_websocket_counts_like_a_request_and_a_forwarded_address_has_no_limit_of_its_own(limited):
    server, stop, ask = limited, {"type": "stop"}, {"prompt": "hi", "max_new_tokens": 1}

    def post(forwarded):
        headers = {"X-Forwarded-For": f"203.0.113.{forwarded}"}
        return httpx.post(server.url + "/chat_stream", json=ask, headers=headers).status_code

    with connect(server.url.replace("http", "ws") + "/ws") as ws:

        def last_frame(body):
            ws.send(json.dumps(body))
            while (frame := json.loads(ws.recv(LIMIT_S)))["type"] == "token":
                pass
            return frame

        assert post(1) == 200
        assert last_frame(ask)["type"] == "done"
        ws.send(json.dumps(stop))  # does not count
        assert "at least 1" in last_frame({"prompt": ""})["message"]
        before = steps(server)
        for body in (ask, {"prompt": ""}):
            frame = last_frame(body)
            assert frame["type"] == "error" and "counts as a request" in frame["message"]
            assert re.search(r"Try again in \d+ seconds", frame["message"])
        assert post(1) == post(2) == 429
        assert steps(server) == before


def test_check_from_outside_does_not_call_a_limit_wrong(limited):
    verdict = grading.check_elsewhere("2.2", limited.url)
    assert [test.id for test in verdict.tests if test.status in ("failed", "timeout")] == []
    assert not verdict.right_elsewhere
    assert "the server limits how often one may ask (429)" in str(verdict)


def test_it_passes_the_check_from_outside(server, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    check_from_outside(server, "2.2")


ENDLESS = """

class ModelHandler(ModelHandler):
    def generate(self, prompt, *, max_new_tokens, **settings):
        self._model.generation_config.eos_token_id = []
        return super().generate(prompt, max_new_tokens=10**9, **settings)
"""


def test_sigterm_with_streams_open_ends_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    for id in ("2.1", "2.2", "2.3", "2.4"):
        file = find(id).work_file
        file.parent.mkdir(exist_ok=True)
        code = find(id).solution_file.read_text("utf-8")
        file.write_text(code + ENDLESS if id == "2.1" else code, "utf-8")
    # `serve` would stop the other tests' server
    listener = lesson_server._bind("127.0.0.1", 0)
    with (
        lesson_server.Server(2, listener, host="127.0.0.1", solution=False, model=None) as server,
        httpx.Client(timeout=LIMIT_S) as client,
        contextlib.ExitStack() as stack,
    ):
        url, streams = server.url + "/chat_stream", []
        for _ in range(4):
            response = stack.enter_context(client.stream("POST", url, json=STORY))
            streams.append(events(response))
            next(streams[-1])
        server.process.send_signal(signal.SIGTERM)
        # were it to wait for the streams' ends, it would wait for ever
        assert server.process.wait(LIMIT_S) == 0
        assert "Traceback" not in server.logs()
        assert not any(came_to_its_end(stream) for stream in streams)


def came_to_its_end(stream):
    try:
        return [name for name, _ in stream][-1] == "done"
    except httpx.RemoteProtocolError:
        return False


@pytest.mark.parametrize(
    ("headers", "language", "says"),
    [
        ({"Retry-After": "17"}, "en-US", "Too many requests (429): .* Try again in 17 s.$"),
        ({}, "en-US", "Too many requests (429): .* Try again in a while.$"),
        ({"Retry-After": "17"}, "zh-CN", "（429）：.*请 17 秒后再试。$"),
    ],
)
def test_the_page_says_a_429_in_words(server, browser, headers, language, says):
    page = browser.new_page(locale=language)
    page.goto(server.url)
    page.route("**/chat_stream", lambda route: route.fulfill(status=429, headers=headers, body='{"detail": "no"}'))
    page.fill("#text", "你好")
    page.click("#send")
    page.wait_for_selector("#sse[data-state=failed]")
    said = page.inner_text("#sse .answer")
    page.close()
    assert re.search(says.replace("(429)", r"\(429\)"), said), said


def test_the_page_streams_over_both_and_its_stop_stops_the_model(server, browser):
    page = browser.new_page(locale="en-US")
    page.goto(server.url)
    page.fill("#text", "Tell me a story")
    page.click("#send")
    parts = []
    for transport in ("#sse", "#socket"):
        page.wait_for_function(f"document.querySelector('{transport} .answer').textContent.length > 10")
        assert httpx.get(server.url + "/model").json()["pause_ms"] > 0
        page.click(f"{transport} .stop")
        page.wait_for_selector(f"{transport}[data-state=stopped]")
        parts.append(page.inner_text(f"{transport} .answer"))
    assert settled(server) == steps(server)
    page.wait_for_selector("#send:enabled")
    assert httpx.get(server.url + "/model").json()["pause_ms"] == 0

    page.uncheck("#slow")
    page.click("#send")
    page.wait_for_selector("#socket[data-state=done]", timeout=60_000)
    story = page.inner_text("#sse .answer")
    assert page.inner_text("#socket .answer") == story
    assert all(story.startswith(part) and len(part) < len(story) for part in parts)
    figures = page.inner_text("#sse .figures")
    assert re.match(r"\d+ pieces · first after [\d.]+ s · \d+ pieces/s$", figures), figures

    page.reload()
    page.click("#language")
    assert page.inner_text("h1 small") == "第 2 阶段：流式输出"
    page.fill("#text", "你好")
    page.click("#send")
    page.wait_for_selector("#socket[data-state=done]", timeout=60_000)
    for transport in ("sse", "socket"):
        assert page.inner_text(f"#{transport} .answer") == "你好！有什么我能帮助你的吗？"
    page.close()
