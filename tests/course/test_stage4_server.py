"""The lesson server of stage 4 with the reference answers, on a real socket: what it gives under load, what it
survives, and its pages.

Where a test counts, it counts the model's calls (`/model`) or what Prometheus reads (`/metrics`).
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import LIMIT_S, Raw, check_from_outside, examine, settled, wait_for

from course.answers import NotReady
from course.lessons import server as lesson_server
from course.lessons import stage4
from course.lessons.server import serve

PATH = "/v1/chat/completions"
STORY = "Tell me a story"
ENDLESS = {"max_tokens": 4000, "temperature": 2.0, "seed": 3, "stream": True}
"""So hot that the model says its end late, after 76 tokens."""
GRACE_S = 2
START_S = 300
"""Only ends a hang."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_WORK", str(tmp_path_factory.mktemp("work")))
        yield


@pytest.fixture(scope="module")
def started(work):
    with serve(4, solution=True, tuned=True) as server:
        yield server


@pytest.fixture(scope="module")
def plain(work):
    """One with 4.5's slot model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson_server, "GRACE_S", GRACE_S)
        # `serve` would stop the other one
        listener = lesson_server._bind("127.0.0.1", 0)
        server = lesson_server.Server(4, listener, host="127.0.0.1", solution=True, model=None)
    with server:
        wait_for(lambda: httpx.get(server.url + "/ready").status_code == 200, START_S)
        yield server


@pytest.fixture
def server(started):
    wait_for(lambda: httpx.get(started.url + "/ready").status_code == 200, START_S)
    yield started
    wait_for(lambda: at_rest(started))


def figures(server):
    """The samples of a scrape, {name or name{outcome}: value}."""
    text = httpx.get(server.url + "/metrics").text
    return {
        sample.name + "".join(f"{{{value}}}" for key, value in sample.labels.items() if key == "outcome"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def at_rest(server):
    now = figures(server)
    return now["llm_requests_running"] == now["llm_requests_waiting"] == now["llm_requests_in_flight"] == 0


def body(text, **options):
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny-qwen", "messages": messages, "temperature": 0, **options}


def address(server):
    return "127.0.0.1", server.port


def ask(server, text, **options):
    return httpx.post(server.url + PATH, json=body(text, **options), timeout=LIMIT_S)


def events(text):
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def said(response):
    """(text, finish_reason) of a stream or a whole answer; or its error."""
    if response.status_code != 200:
        return response.status_code, response.json()["error"]["message"]
    if not response.headers["Content-Type"].startswith("text/event-stream"):
        [choice] = response.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    *chunks, done = events(response.text)
    assert done == "[DONE]", done
    [*_, last] = chunks = [json.loads(chunk)["choices"][0] for chunk in chunks]
    return "".join(chunk["delta"].get("content", "") for chunk in chunks), last["finish_reason"]


# beside others


MIXED = [
    {"text": STORY, "max_tokens": 40},
    {"text": "讲一个故事。", "max_tokens": 33, "stream": True},
    {"text": "What is a token?", "max_tokens": 50, "stream": True},
    {"text": "你好"},
    {"text": STORY, "temperature": 1.0, "seed": 7, "max_tokens": 30},
    {"text": STORY, "temperature": 1.0, "seed": 8, "max_tokens": 30, "stream": True},
    {"text": "什么是 token？", "temperature": 0.7, "top_p": 0.9, "seed": 1, "max_tokens": 25},
    {"text": STORY, "stop": ["server"], "max_tokens": 60},
    {"text": STORY, "stop": ["thread", "one"], "max_tokens": 60, "stream": True},
    {"text": "Tell me about batches. " * 20, "max_tokens": 12},
    {"text": "x", "max_tokens": 1},
    {"text": "Hello", "max_tokens": 17, "stream": True},
    {"text": "What is a server? " * 150, "max_tokens": 5, "stream": True},
    {"text": "Tell me about streaming", "temperature": 1.5, "seed": 0, "max_tokens": 20, "stream": True},
    {"text": "What is a token? " * 5_000},
]
ROUNDS = int(os.environ.get("COURSE_ROUNDS", 5))


def test_mixed_requests_at_once_each_get_what_they_get_alone(server):
    alone = [said(ask(server, **request)) for request in MIXED]
    assert alone[-1][0] == 400 and "8192" in alone[-1][1]
    chance = random.Random(0)

    async def one(client, request):
        await asyncio.sleep(chance.random() * 0.3)
        return said(await client.post(server.url + PATH, json=body(**request), timeout=LIMIT_S))

    async def leave(client):
        await asyncio.sleep(chance.random() * 0.3)
        async with client.stream("POST", server.url + PATH, json=body(STORY, stream=True)) as response:
            async for _ in response.aiter_bytes():
                return

    async def a_round():
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            order = chance.sample(range(len(MIXED)), len(MIXED))
            *answers, _ = await asyncio.gather(*(one(client, MIXED[n]) for n in order), leave(client))
            return dict(zip(order, answers))

    for _ in range(ROUNDS):
        answers = asyncio.run(a_round())
        for n, answer in answers.items():
            assert answer == alone[n], MIXED[n]


def test_64_clients_share_the_steps(server):
    before = settled(server)

    async def all_of_them():
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            url, request = server.url + PATH, body(STORY, max_tokens=32)
            return await asyncio.gather(*(client.post(url, json=request) for _ in range(64)))

    answers = {said(response) for response in asyncio.run(all_of_them())}
    assert len(answers) == 1 and answers.pop()[1] == "length"
    # alone, each takes a prefill and 31 steps
    assert settled(server) - before < 64 * 32 / 2


def test_one_too_many_is_told_so_and_the_others_are_answered(server):
    slots, waiting = stage4.SLOTS, stage4.SLOTS
    before = figures(server)

    async def one(client):
        response = await client.post(server.url + PATH, json=body(STORY, max_tokens=20, stream=True))
        return response.status_code, response.headers.get("Retry-After")

    async def all_of_them():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=LIMIT_S, limits=limits) as client:
            return await asyncio.gather(*(one(client) for _ in range(256)))

    answers = asyncio.run(all_of_them())
    answered = answers.count((200, None))
    assert answered >= slots + waiting and set(answers) <= {(200, None), (503, "1")}
    wait_for(lambda: at_rest(server))
    ended = figures(server)["llm_requests_total{length}"] - before.get("llm_requests_total{length}", 0)
    assert ended == answered


# clients that leave


CLIENTS = int(os.environ.get("COURSE_CLIENTS", 100))


def test_dropped_clients_leave_nothing_behind(server):
    before = figures(server)
    chance = random.Random(1)
    for _ in range(CLIENTS // 20):
        clients = [
            (Raw(address(server), PATH, **body(STORY, max_tokens=2000, stream=stream, temperature=1)), stream, reads)
            for stream in (False, True)
            for reads in (False, True)
            for _ in range(5)
        ]
        chance.shuffle(clients)
        for client, stream, reads in clients:
            if stream and reads:
                client.read_to(b'"delta"')
            time.sleep(chance.random() * 0.01)
            client.close()
    wait_for(lambda: at_rest(server))
    settled(server)
    now = figures(server)
    assert now["llm_requests_total{cancelled}"] > before.get("llm_requests_total{cancelled}", 0)
    # a client that stayed would have been made up to 2,000 steps
    assert now["llm_engine_steps_total"] - before["llm_engine_steps_total"] < CLIENTS * 100
    assert said(ask(server, "你好")) == ("你好！有什么我能帮助你的吗？", "stop")


def test_no_forward_pass_for_who_has_left(server):
    client = Raw(address(server), PATH, **body(STORY, **ENDLESS))
    client.read_to(b'"delta"')
    client.close()
    wait_for(lambda: at_rest(server))
    made = settled(server)
    ask(server, "x", max_tokens=5)
    assert settled(server) - made == 5


# long prompts


def test_streams_go_on_and_the_health_check_answers_beside_a_long_prompt(server):
    prompt = "What is a server? " * 400

    async def stream(client, n, counts):
        async with client.stream("POST", server.url + PATH, json=body(STORY, max_tokens=120, stream=True)) as response:
            async for line in response.aiter_lines():
                counts[n] += '"content"' in line

    async def all_of_them():
        async with httpx.AsyncClient(timeout=LIMIT_S) as client:
            counts = [0] * 16
            streams = [asyncio.create_task(stream(client, n, counts)) for n in range(16)]
            while min(counts) < 3:
                await asyncio.sleep(0.001)
            long = asyncio.create_task(client.post(server.url + PATH, json=body(prompt, max_tokens=1)))
            healthy = 0
            while not long.done():
                healthy += (await client.get(server.url + "/health")).status_code == 200
            assert (await long).json()["usage"]["prompt_tokens"] > 2_000
            # its prefill took its turn between two steps of the others
            assert healthy and max(counts) < 120
            await asyncio.gather(*streams)
            assert len(set(counts)) == 1

    asyncio.run(all_of_them())


# what is seen from outside


def test_a_scrape_parses_and_counts(server):
    before = figures(server)
    ask(server, "你好")
    ask(server, STORY, max_tokens=3)
    wait_for(lambda: at_rest(server))
    now = figures(server)
    grown = {name: now[name] - before.get(name, 0) for name in now}
    assert grown["llm_requests_total{stop}"] == grown["llm_requests_total{length}"] == 1
    assert grown["llm_completion_tokens_total"] == grown["llm_engine_tokens_total"] == 9 + 3
    assert grown["llm_time_to_first_token_seconds_count"] == grown["llm_request_seconds_count"] == 2
    assert now["llm_engine_up"] == 1


def test_pages_and_checks_answer(server):
    for path in ("/", "/dashboard", "/common.js", "/openai.js", "/health", "/ready", "/model", "/v1/models"):
        assert httpx.get(server.url + path).status_code == 200, path
    error = httpx.get(server.url + "/nothing")
    assert error.status_code == 404 and error.json()["error"]["type"] == "invalid_request_error"


# its start and its end


def test_what_is_missing_is_named_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "empty"))
    with pytest.raises(NotReady) as error:
        stage4.build(solution=False)
    named = [line.split()[0] for line in str(error.value).splitlines()[:6]]
    assert named == ["3.4", "3.5", "3.7", "4.1", "4.2", "4.3"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "file"))
    with pytest.raises(NotReady, match="log cannot be written.*COURSE_WORK"):
        stage4.build(solution=True)


def lives(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE


def ends_with(by, server):
    client = Raw(address(server), PATH, **body(STORY, **ENDLESS))
    client.read_to(b'"delta"')
    started = psutil.Process(server.process.pid).children(recursive=True)
    assert httpx.get(server.url + "/model").json()["pid"] in [each.pid for each in started]
    server.process.send_signal(by)
    server.process.wait(GRACE_S + LIMIT_S)
    client.close()
    wait_for(lambda: not any(lives(each) for each in started))


# the other slot model


def test_with_the_slot_model_of_4_5_it_passes_the_audit(plain):
    examine(plain)


def test_with_the_slot_model_of_4_5_it_passes_the_check_from_outside(plain):
    check_from_outside(plain, "3.7")


def test_no_engine_outlives_its_server_that_is_told_to_end(plain):
    ends_with(signal.SIGTERM, plain)


# the pages in a real browser; behind its first one asyncio.run works no longer


READERS = 32


@pytest.fixture
def page(server, browser):
    page, errors = browser.new_page(locale="en-US"), []
    page.set_default_timeout(LIMIT_S * 1000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    # a 503 is one too
    page.on("console", lambda each: each.type == "error" and " 503 " not in each.text and errors.append(each.text))
    yield page
    page.close()
    assert errors == []
    assert "Traceback" not in server.logs()


@pytest.fixture
def load(server):
    """READERS that ask again and again."""
    over = threading.Event()
    body = {"model": "tiny-qwen", "messages": [{"role": "user", "content": "Tell me a story"}], "stream": True}

    def client(n):
        with httpx.Client(timeout=LIMIT_S) as http:
            while not over.is_set():
                http.post(server.url + PATH, json={**body, "max_tokens": 30 + n, "temperature": 0})

    threads = [threading.Thread(target=client, args=[n]) for n in range(READERS)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def number(page, id):
    text = page.inner_text(f"#{id}")
    return float(text) if text != "–" else -1


def test_the_dashboards_figures_move_under_load(page, server, load):
    page.goto(server.url + "/dashboard")
    page.wait_for_function(f"Number(document.getElementById('running').textContent) > {READERS // 2}")
    page.wait_for_function("Number(document.getElementById('rate').textContent) > 0")
    page.wait_for_function("Number(document.getElementById('first').textContent) > 0")
    page.wait_for_function("document.querySelectorAll('#ttft circle').length > 1")
    ended = number(page, "ended")
    page.wait_for_function(f"Number(document.getElementById('ended').textContent) > {ended}")
    for chart in ("requests", "tokens"):
        line = page.locator(f"#{chart} path").first.get_attribute("d")
        page.wait_for_function(f"document.querySelector('#{chart} path').getAttribute('d') !== '{line}'")
    assert "ended normally" in page.inner_text("#outcomes")
    assert page.inner_text("#engine") == "Engine: alive, restarted 0 times"
    page.click("#language")
    assert page.inner_text("#engine") == "引擎：运行中，已重启 0 次"
    assert page.inner_text("h1 small") == "服务器里正在发生什么"


def test_the_chat_page_answers_and_links_to_the_dashboard(page, server):
    page.goto(server.url)
    page.fill("#text", "你好")
    page.press("#text", "Enter")
    page.wait_for_selector("#stop:disabled")
    page.wait_for_selector("#log .below:not(:empty)")
    assert page.locator("#log li:not(.mine) .bubble").inner_text() == "你好！有什么我能帮助你的吗？"
    page.wait_for_function("Number(document.getElementById('steps').dataset.n) >= 9")
    page.get_by_role("link", name="Dashboard").click()
    page.wait_for_function("document.getElementById('running').textContent === '0'")


def test_a_full_server_says_so(page, server):
    page.goto(server.url)
    refused = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": {"message": "full"}}}
    page.route(f"**{PATH}", lambda route: route.fulfill(**refused))
    page.fill("#text", "你好")
    page.press("#text", "Enter")
    page.wait_for_selector(".failed")
    assert "The server is full (503)" in page.locator("#log .failed .bubble").inner_text()


# an engine that is lost, and at last the server


def test_a_killed_engine_is_an_error_for_those_it_answered_and_a_new_one_comes(server):
    engine = httpx.get(server.url + "/model").json()["pid"]
    client = Raw(address(server), PATH, **body(STORY, **ENDLESS))
    client.read_to(b'"delta"')
    os.kill(engine, signal.SIGKILL)
    client.read_to(b"0\r\n\r\n")
    client.close()
    last = json.loads(events(client.come.decode())[-1])
    assert last["error"]["type"] == "server_error" and "[DONE]" not in client.come.decode()
    assert httpx.get(server.url + "/ready").status_code == 503
    assert httpx.get(server.url + "/health").status_code == 200
    refused = ask(server, "你好")
    assert refused.status_code == 503 and refused.headers["Retry-After"]
    assert refused.json()["error"].keys() == {"message", "type", "param", "code"}
    assert figures(server)["llm_engine_up"] == 0
    wait_for(lambda: httpx.get(server.url + "/ready").status_code == 200, START_S)
    assert said(ask(server, "你好")) == ("你好！有什么我能帮助你的吗？", "stop")
    assert figures(server)["llm_engine_restarts_total"] == 1


def test_no_engine_outlives_its_server_that_is_killed(started):
    ends_with(signal.SIGKILL, started)
