"""The lesson server of stage 3 with the reference answers, on a real socket, with OpenAI's own client, its
log, and its page.

Where a test has to hold the model or look at what is left, the server runs in a thread of this process (`here`);
elsewhere in a process of its own, as `course serve` starts it.
"""

import asyncio
import collections
import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from served import LIMIT_S, LINE, Here, Raw, check_from_outside, examine, settled, steps, wait_for

from course.answers import NotReady, load
from course.lessons import stage3
from course.lessons.server import serve
from course.manifest import ROOT

PATH = "/v1/chat/completions"
START_S = 300
"""For two processes that load a model at once; only ends a hang."""


# the servers


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The learner's folder, which has nothing but the logs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("work")
        patch.setenv("COURSE_WORK", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(work):
    with serve(3, solution=True) as server:
        yield server
    assert "Traceback" not in server.logs()


@pytest.fixture(scope="module")
def thread(work):
    root = logging.getLogger()
    before = root.handlers[:], root.level
    here = Here(stage3)
    yield here
    here.stop()
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture
def here(thread):
    yield thread
    thread.probe.mend()
    thread.probe.release()
    wait_for(lambda: thread.left() == (0, 0))


def log_of(work, name="web_service.log"):
    """Each line of the log as {"pid", "level", "logid", "message"}; one that is torn fails the test."""
    lines = (work / "logs" / name).read_text("utf-8").splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    return [LINE.fullmatch(line).groupdict() for line in lines]


# the clients


def user(text):
    return [{"role": "user", "content": text}]


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=LIMIT_S)


def async_client_of(server):
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0, timeout=LIMIT_S)


def ask(client, text, **options):
    """A coroutine of the async client, a result of the other."""
    return client.chat.completions.create(model="tiny-qwen", messages=user(text), temperature=0, **options)


# OpenAI's client


PROMPTS = [
    text.format(word)
    for word in (
        "token", "tokenizer", "prefill", "decode", "streaming", "server", "chat template", "WebSocket", "Qwen", "batch",
        "cache", "GPU", "FastAPI",
    )
    for text in ("What is a {}?", "什么是 {}？", "Tell me about {}", "{} 有什么用？")
]  # fmt: skip


def test_both_clients_are_told_the_same_in_both_modes_and_usage_is_what_was_counted(server):
    client, async_client = client_of(server), async_client_of(server)
    encode_chat = load("1.5", "encode_chat", solution=True)
    _, tokenizer = stage3.load_model(None)

    streamed = {"stream": True, "stream_options": {"include_usage": True}}

    async def all_of_them():
        """(whole, its steps, chunks) of each prompt: one of the two by the one client, the other by the other."""
        answers = []
        for n, prompt in enumerate(PROMPTS):
            before = steps(server)
            whole = ask(client, prompt) if n % 2 else await ask(async_client, prompt)
            made = steps(server) - before
            if n % 2:
                chunks = [chunk async for chunk in await ask(async_client, prompt, **streamed)]
            else:
                chunks = list(ask(client, prompt, **streamed))
            answers.append((whole, made, chunks))
        return answers

    answers = asyncio.run(all_of_them())
    assert len(PROMPTS) >= 50
    for prompt, (whole, made, chunks) in zip(PROMPTS, answers, strict=True):
        text, reason = whole.choices[0].message.content, whole.choices[0].finish_reason
        # each token was chosen by one step
        assert whole.usage.completion_tokens == made
        assert whole.usage.prompt_tokens == len(encode_chat(tokenizer, user(prompt)))
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        *chunks, last = chunks
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [reason]
        assert last.usage == whole.usage and last.choices == []
    chunks = list(ask(client, "你好", stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "你好！有什么我能帮助你的吗？"


def test_the_client_finds_the_model_and_the_health_check_answers(server):
    assert [model.id for model in client_of(server).models.list()] == ["tiny-qwen"]
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    with pytest.raises(openai.NotFoundError) as error:
        client_of(server).chat.completions.create(model="gpt-4o", messages=user("hi"))
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_64_clients_at_once_each_get_their_own_text(here, stream):
    for n in range(64):
        here.say(f"client {n:02}", f"text of {n:02} 你好")
    here.probe.hold(1)

    async def one(client, n):
        answer = await ask(client, f"client {n:02}", stream=stream)
        if stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
        return answer.choices[0].message.content

    async def all_of_them():
        async with async_client_of(here) as client:
            answers = [asyncio.ensure_future(one(client, n)) for n in range(64)]
            while len(here.server.server_state.tasks) < 64:
                await asyncio.sleep(0.01)
            here.probe.release()
            return await asyncio.wait_for(asyncio.gather(*answers), LIMIT_S)

    assert asyncio.run(all_of_them()) == [f"text of {n:02} 你好" for n in range(64)]


def test_it_passes_the_audit(server):
    examine(server)


def test_it_passes_the_check_from_outside(server):
    check_from_outside(server, "3.7")


# clients that leave, models that fail


@pytest.mark.parametrize("stream", [False, True])
def test_one_who_leaves_stops_the_model_200_times_in_a_row(here, stream, caplog):
    prompt, held = f"who leaves, {stream}", 3
    here.say(prompt, "一", times=800)
    here.say("who stays", "一二三四五六七八九十")
    body = {"model": "tiny-qwen", "messages": user(prompt), "max_tokens": 800, "stream": stream}

    def one():
        here.probe.hold(held)
        client = Raw(here.address, PATH, **body)
        if stream:
            client.read_to(b'"delta"')
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
    with client_of(here) as client:
        assert ask(client, "who stays").choices[0].message.content == "一二三四五六七八九十"
    wait_for(lambda: here.left() == (0, 0))
    made = here.steps(prompt)
    assert len(made) == 200 and max(made) <= held + 5
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert not [record for record in caplog.records if record.levelname != "INFO"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_raises_in_the_client_and_is_one_line_in_the_log(here, work, stream):
    here.say("it fails", "一二三四五六七八九十")
    here.probe.fail(5, 'a "secret"\nof the model')
    before = len(log_of(work, "web_service.log.wf"))
    texts = []
    with client_of(here) as client, pytest.raises(openai.APIError) as error:
        answer = ask(client, "it fails", stream=stream)
        logid = answer.response.headers["X-Log-Id"]
        for chunk in answer:
            texts.append(chunk.choices[0].delta.content or "")
    if stream:
        assert "".join(texts) == "一二三四" and "secret" not in str(error.value)
    else:
        assert error.value.status_code == 500 and "secret" not in error.value.response.text
        logid = error.value.response.headers["X-Log-Id"]
    [line] = log_of(work, "web_service.log.wf")[before:]
    assert line["level"] == "ERROR" and line["logid"] == logid
    assert r'RuntimeError: a "secret"\nof the model' in line["message"]
    assert [each for each in log_of(work) if each["level"] == "ERROR"][-1] == line

    here.probe.mend()
    with client_of(here) as client:
        assert ask(client, "it fails").choices[0].message.content == "一二三四五六七八九十"


# what is refused


def body_of(**changes):
    return json.dumps({"model": "tiny-qwen", "messages": user("hi"), **changes}).encode()


NOT_ALLOWED = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"model": "tiny-qwen", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "nested deep": b"[" * 100_000,
    "nested deep inside": body_of().replace(b'"hi"', b"[" * 100_000),
    "10 MB": body_of(messages=user("x" * 10_000_000)),
    "over the window": body_of(messages=user("What is a token? " * 5_000)),
    "NaN": body_of(temperature=float("nan")),
    "Infinity": body_of(top_p=float("inf")),
    "half a surrogate": body_of(messages=user("\ud800")),
    "a surrogate as bytes": body_of().replace(b"hi", b"\xed\xa0\x80"),
    "half a surrogate as a stop": body_of(stop="\ud800"),
    "a list": b"[]",
    "no messages": body_of(messages=[]),
    "a role": body_of(messages=[{"role": "king", "content": "hi"}]),
    "an image": body_of(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
    "no tokens": body_of(max_tokens=0),
    "hot": body_of(temperature=2.5),
    "two answers": body_of(n=2),
    "five stops": body_of(stop=["a", "b", "c", "d", "e"]),
    "an empty stop": body_of(stop=""),
    "another model": body_of(model="gpt-4o"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", NOT_ALLOWED.values(), ids=NOT_ALLOWED)
def test_what_is_not_allowed_is_an_error_of_openais_and_no_step(server, body, stream):
    if stream:
        body = body.replace(b'{"model"', b'{"stream": true, "model"', 1)
    before = steps(server)
    headers = {"Content-Type": "application/json"}
    response = httpx.post(server.url + PATH, content=body, headers=headers, timeout=LIMIT_S)
    assert 400 <= response.status_code < 500
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] == "invalid_request_error" and len(response.content) < 500
    assert response.headers["X-Log-Id"]
    assert steps(server) == before


def test_the_lines_of_a_request_are_only_its_own_and_not_too_many(server):
    client = client_of(server)
    forged = "[2024-02-07 16:17:06,436] [pid:1] [level:INFO] [logid:mine] [CPU: 0.0] [Memory: 0.0] [GPU: 0] forged"
    for text, logid in ((forged, "another"), (f"\n{forged}", "another"), *((f"my {n}", "mine") for n in range(60))):
        ask(client, text, max_tokens=1, extra_headers={"X-Log-Id": logid})
    lines = httpx.post(server.url + "/log_lines", json={"logid": "mine"}).json()["lines"]
    assert len(lines) == stage3.MOST_LINES and "asked: my 59" in lines[-2]
    assert {LINE.fullmatch(line)["logid"] for line in lines} == {"mine"}
    assert not any("forged" in line for line in lines)
    assert httpx.post(server.url + "/log_lines", json={"logid": "nobody's"}).status_code == 422
    assert httpx.post(server.url + "/log_lines", json={"logid": "nobody"}).json() == {"lines": []}


# the log


def test_100_requests_at_once_have_each_line_under_their_own_id(here, work):
    here.say("hundred", "一二三")
    here.probe.hold(1)

    async def one(client, n):
        response = await client.chat.completions.with_raw_response.create(
            model="tiny-qwen", messages=user(f"hundred {n:03}"), stream=bool(n % 2)
        )
        if n % 2:
            assert [chunk async for chunk in response.parse()]
        return response.headers["X-Log-Id"]

    async def all_of_them():
        async with async_client_of(here) as client:
            ids = [asyncio.ensure_future(one(client, n)) for n in range(100)]
            while len(here.server.server_state.tasks) < 100:
                await asyncio.sleep(0.01)
            here.probe.release()
            return await asyncio.wait_for(asyncio.gather(*ids), LIMIT_S)

    ids = asyncio.run(all_of_them())
    assert len(set(ids)) == 100
    messages = collections.defaultdict(list)
    for line in log_of(work):
        messages[line["logid"]].append(line["message"])
    for n, id in enumerate(ids):
        # uvicorn's own line is the third
        asked, *others = messages[id]
        assert asked == f"asked: hundred {n:03}" and len(others) == 2
        assert len([other for other in others if other.startswith("answered: ")]) == 1


def test_two_workers_lose_and_tear_no_line_of_1000_requests(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "course.lessons.stage3:build"]
    command += ["--workers", "2", "--port", str(port), "--log-level", "error"]
    # a busy computer's worker that is silent for 5 seconds would be replaced
    command += ["--timeout-worker-healthcheck", str(START_S)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "COURSE_WORK": str(tmp_path), "COURSE_SOLUTION": "1"}

    async def one(client, n, turn):
        text = f"request {n:04}\n[logid:other] " + "长" * 20
        async with turn:
            # a connection of its own: so both workers get some
            headers = {"X-Log-Id": f"request-{n:04}", "Connection": "close"}
            body = {"model": "tiny-qwen", "messages": user(text), "max_tokens": 1}
            return (await client.post(PATH, json=body, headers=headers)).status_code

    async def all_of_them():
        turn = asyncio.Semaphore(20)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            return await asyncio.gather(*(one(client, n, turn) for n in range(1000)))

    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            wait_for(lambda: process.poll() is not None or is_up(port), START_S)
            assert set(asyncio.run(all_of_them())) == {200}
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT_S)
    lines = [line for line in log_of(tmp_path) if line["logid"] != "default"]
    assert len(lines) == 2000 and len({line["pid"] for line in lines}) == 2
    for line in lines:
        if line["message"].startswith("asked: "):
            assert line["message"].startswith(f"asked: {line['logid'].replace('-', ' ')}\\n")
    asked = collections.Counter(line["logid"] for line in lines if line["message"].startswith("asked: "))
    answered = collections.Counter(line["logid"] for line in lines if line["message"].startswith("answered: "))
    assert asked == answered == {f"request-{n:04}": 1 for n in range(1000)}


def is_up(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        return True
    return False


# its start and its end


def test_what_is_missing_is_named_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "empty"))
    with pytest.raises(NotReady) as error:
        stage3.build(solution=False)
    assert [line.split()[0] for line in str(error.value).splitlines()[:7]] == [f"3.{n}" for n in range(1, 8)]
    (tmp_path / "file").touch()
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "file"))
    with pytest.raises(NotReady, match="log cannot be written.*COURSE_WORK"):
        stage3.build(solution=True)


TERMINAL = """
import sys
from course.lessons import server
server.GRACE_S = {grace}
sys.exit(server.run(3, solution=True, port=0))
"""


@pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: Windows has no SIGTERM")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("grace", [LIMIT_S, 0.2])
def test_a_signal_with_4_streams_open_lets_them_end_within_the_grace_time(tmp_path, how, grace):
    environment = {**os.environ, "COURSE_WORK": str(tmp_path)}
    command = [sys.executable, "-c", TERMINAL.format(grace=grace)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next(re.findall(r"http://[\d.:]+", line)[0] for line in process.stdout if "http://" in line)
            # 4 times 9 steps take seven seconds, a story half a minute: none has ended before the signal
            text = "你好" if grace == LIMIT_S else "Tell me a story"
            httpx.put(url + "/pace", json={"pause_ms": 200})
            with ThreadPoolExecutor(4) as pool:
                began = threading.Barrier(5)
                ends = [pool.submit(last_data, url, text, began) for _ in range(4)]
                began.wait(LIMIT_S)
                process.send_signal(how)
                ends = [end.result(LIMIT_S) for end in ends]
            assert process.wait(LIMIT_S) == 0
            assert set(ends) == ({"[DONE]"} if grace == LIMIT_S else {"cut"})
        finally:
            process.kill()


def last_data(url, text, began):
    """The last data of a stream, or "cut"; at its first piece it waits for `began`."""
    body = {"model": "tiny-qwen", "messages": user(text), "temperature": 0, "stream": True}
    last = None
    try:
        with httpx.stream("POST", url + PATH, json=body, timeout=LIMIT_S) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    if last is None:
                        began.wait(LIMIT_S)
                    last = line.removeprefix("data: ")
    except httpx.RemoteProtocolError:
        pass
    return last if last == "[DONE]" else "cut"


# its page in a real browser: a conversation and the log of its last request. Behind the first one asyncio.run works no
# longer


@pytest.fixture
def page(server, browser):
    page, errors = browser.new_page(locale="en-US"), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    yield page
    page.close()
    assert errors == []


def say(page, text):
    """Sends a message and waits for its answer; returns that and what stands below."""
    page.fill("#text", text)
    page.press("#text", "Enter")
    answer = page.locator("#log li:not(.mine)").last
    page.wait_for_selector("#stop:disabled")
    return answer.locator(".bubble").inner_text(), answer.locator(".below").inner_text()


def lines(page, words):
    """The log pane's lines when one of them says `words`."""
    page.locator("#lines div", has_text=words).wait_for()
    return page.locator("#lines div").all_inner_texts()


def test_the_page_keeps_the_conversation_and_shows_figures_and_the_log(page):
    page.uncheck("#slow")
    text, below = say(page, "My name is Alice.")
    assert "Alice" in text
    assert re.fullmatch(r"first text after [\d.]+ s · \d+ tokens/s · \d+ \+ \d+ tokens · stop", below), below
    text, _ = say(page, "What is my name?")
    assert text == "Your name is Alice."
    asked, answered = lines(page, "answered: ")
    assert "asked: What is my name?" in asked and answered.endswith(": stop")
    logid = page.inner_text("#logid").removeprefix("X-Log-Id: ")
    assert {LINE.fullmatch(line)["logid"] for line in (asked, answered)} == {logid}

    page.click("#fresh")
    assert page.locator("#log li").count() == 0
    assert "Alice" not in say(page, "What is my name?")[0]


def test_its_stop_stops_the_model_and_the_log_says_so(page, server):
    before = steps(server)
    page.fill("#text", "Tell me a story")
    page.press("#text", "Enter")
    page.wait_for_function("document.querySelector('#log li:last-child .bubble').textContent.length > 10")
    assert httpx.get(server.url + "/model").json()["pause_ms"] > 0
    page.click("#stop")
    page.wait_for_selector("#stop:disabled")
    below = page.inner_text("#log li:last-child .below")
    assert re.fullmatch(r"first text after [\d.]+ s · \d+ pieces · stopped", below), below
    assert lines(page, "the client left")
    made = settled(server) - before
    assert httpx.get(server.url + "/model").json()["pause_ms"] == 0
    body = {"model": "tiny-qwen", "messages": [{"role": "user", "content": "Tell me a story"}], "temperature": 0}
    whole = httpx.post(server.url + PATH, json=body, timeout=LIMIT_S).json()
    assert made < whole["usage"]["completion_tokens"]


def test_it_speaks_chinese_too(page):
    page.uncheck("#slow")
    page.click("#language")
    assert page.inner_text("h1 small") == "第 3 阶段：OpenAI 接口"
    text, below = say(page, "你好")
    assert text == "你好！有什么我能帮助你的吗？" and "个 token" in below


def events(*datas):
    return {"content_type": "text/event-stream", "body": "".join(f"data: {json.dumps(data)}\n\n" for data in datas)}


ONCE = {"choices": [{"delta": {"content": "Once"}}]}
FAILED = {"error": {"message": "The model failed."}}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"status": 400, "json": {"error": {"message": "too long"}}}, "The server answered with status 400. too long"),
        ({"status": 429, "headers": {"Retry-After": "17"}, "body": "{}"}, "Try again in 17 s."),
        ({"status": 500, "body": "no words"}, "The server answered with status 500. no words"),
        (events(ONCE, FAILED), "Once\nThe server broke off the answer: The model failed."),
        (events(ONCE), "Once\nThe connection broke."),
        (None, "No server is answering."),
    ],
)
def test_a_failed_answer_is_explained_not_remembered_and_can_be_tried_again(page, reply, says):
    page.uncheck("#slow")
    page.route(f"**{PATH}", lambda route: route.fulfill(**reply) if reply else route.abort())
    assert says in say(page, "My name is Bob.")[0]
    page.unroute(f"**{PATH}")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("#stop:disabled")
    assert page.locator("#log li").count() == 2
    assert "Bob" in page.locator("#log li:not(.mine) .bubble").inner_text()
