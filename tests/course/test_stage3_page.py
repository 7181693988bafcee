"""The page of stage 3 in a real browser, on the reference server: a conversation and the log of its last request."""

import json
import re

import httpx
import pytest
from served import LIMIT_S, LINE, settled, steps

from course.lessons.server import serve

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    with pytest.MonkeyPatch.context() as patch:
        # for the logs
        patch.setenv("COURSE_WORK", str(tmp_path_factory.mktemp("work")))
        with serve(3, solution=True) as server:
            yield server
        assert "Traceback" not in server.logs()


@pytest.fixture
def page(browser, server):
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
        (events(ONCE, FAILED), "Once\nThe server broke the answer off: The model failed."),
        (events(ONCE), "Once\nThe connection broke."),
        (None, "No server answers."),
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
