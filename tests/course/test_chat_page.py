"""The chat page in a real browser, on the reference server of stage 1."""

import json
import re

import httpx
import pytest

from course.lessons.server import serve
from course.lessons.stage import PAGES

LIMIT_MS = 30_000
PHONE = {"width": 360, "height": 640}


@pytest.fixture(scope="module")
def server(browser):
    with serve(1, solution=True) as server:
        yield server


@pytest.fixture
def open_page(browser, server):
    """open_page(**options of a browser context) opens the chat page; errors in it fail the test."""
    contexts, errors = [], []

    def open_page(**options):
        context = browser.new_context(**{"locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(LIMIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def page(open_page):
    return open_page()


def box(page):
    return page.get_by_role("textbox", name="Your message")


def send(page, text):
    box(page).fill(text)
    box(page).press("Enter")


def answers(page):
    """The answers' and errors' texts, when as many have come as messages were sent."""
    page.wait_for_function("!document.querySelector('.dots')")
    return page.locator("#log li:not(.mine) .bubble").all_inner_texts()


def reply_with(page, status, body):
    page.route("**/chat", lambda route: route.fulfill(status=status, body=body))


def test_it_answers_ni_hao(page, server):
    send(page, "你好")
    alone = httpx.post(f"{server.url}/chat", json={"text": "你好"}).json()["result"]
    assert answers(page) == [alone.strip()]
    assert page.locator(".mine .bubble").inner_text() == "你好"
    page.get_by_text("POST /chat → 200").click()
    assert json.dumps({"result": alone}, ensure_ascii=False, separators=(",", ":")) in (
        page.locator("pre").inner_text()
    )
    assert box(page).input_value() == ""
    assert page.locator("summary").inner_text().split()[1] == "s"


def test_text_reaches_the_server_as_it_was_typed(page):
    sent = []

    def reply(route):
        sent.append(route.request.post_data_json)
        route.fulfill(json={"result": "ok"})

    page.route("**/chat", reply)
    box(page).press_sequentially("  one")
    box(page).press("Shift+Enter")
    box(page).press_sequentially("二 <b>")
    page.get_by_role("button", name="Send").click()
    assert answers(page) == ["ok"]
    assert sent == [{"text": "  one\n二 <b>"}]


def test_enter_in_an_input_method_does_not_send(page):
    box(page).fill("ni hao")
    press = "e => e.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: %s}))"
    box(page).evaluate(press % "true")
    assert page.locator("#log li").count() == 0
    box(page).evaluate(press % "false")
    assert page.locator("#log li").count() == 2


def test_blanks_alone_are_not_sent(page):
    send(page, " \n ")
    assert page.get_by_role("button", name="Send").is_disabled()
    assert page.locator("#log li").count() == 0


def test_while_the_model_works_nothing_else_is_sent_and_nothing_typed_is_lost(page):
    held = []
    page.route("**/chat", lambda route: held.append(route))
    send(page, "first")
    page.locator(".dots").wait_for()
    send(page, "second")
    assert page.get_by_role("button", name="Send").is_disabled()
    assert box(page).input_value() == "second"
    held[0].fulfill(json={"result": "done"})
    assert answers(page) == ["done"]
    assert page.get_by_role("button", name="Send").is_enabled()
    assert len(held) == 1


def test_an_answer_is_shown_as_text(page):
    reply_with(page, 200, json.dumps({"result": "<img src=x onerror=alert(1)>\n  two"}))
    send(page, "x")
    assert answers(page) == ["<img src=x onerror=alert(1)>\n  two"]
    assert page.locator("#log img").count() == 0


def test_a_long_message_of_ones_own_is_cut_until_one_wants_it_whole(page):
    reply_with(page, 200, '{"result": "ok"}')
    send(page, "short")
    answers(page)
    whole = page.get_by_role("button", name="Show all")
    assert whole.count() == 0
    send(page, "line\n" * 100)
    answers(page)
    bubble = page.locator(".mine .bubble").last
    assert bubble.evaluate("e => e.clientHeight < e.scrollHeight")
    whole.click()
    assert bubble.evaluate("e => e.clientHeight >= e.scrollHeight")
    assert whole.count() == 0


def test_a_refused_text_can_be_edited(page):
    long = "长" * 4001
    send(page, long)
    (words,) = answers(page)
    assert "422" in words and "at most 4000 characters" in words
    page.get_by_role("button", name="Edit the message").click()
    assert box(page).input_value() == long
    assert page.get_by_text("4001 of 4000").is_visible()
    assert page.locator("#log li").count() == 0


def test_a_server_error_is_told_kindly_and_can_be_tried_again(page):
    reply_with(page, 500, '{"detail": "secret"}')
    send(page, "hello")
    (words,) = answers(page)
    assert "500" in words and "log" in words
    page.unroute("**/chat")
    reply_with(page, 200, '{"result": "now"}')
    page.get_by_role("button", name="Try again").click()
    assert answers(page) == ["now"]
    assert page.locator(".mine .bubble").all_inner_texts() == ["hello"]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, '{"detail": "Not Found"}', "404"),
        (503, "busy", "busy"),
        (429, "{}", "Too many requests (429)"),
        (200, '{"answer": "x"}', '{"answer": "x"}'),
        (200, "not JSON", "not JSON"),
        (200, '{"result": 5}', '{"result": 5}'),
        (200, '{"result": ""}', "an empty answer"),
    ],
)
def test_other_answers_are_explained(page, status, body, says):
    reply_with(page, status, body)
    send(page, "x")
    (words,) = answers(page)
    assert says in words


def test_it_notices_when_the_server_goes_and_comes_back(page):
    page.get_by_text("Server is up").wait_for()
    page.route("**/*", lambda route: route.abort())
    send(page, "x")
    assert "No server is answering" in answers(page)[0]
    page.get_by_text("No server", exact=True).wait_for()
    page.unroute("**/*")
    page.get_by_text("Server is up").wait_for()


def test_it_speaks_the_browsers_language_until_told_otherwise(open_page):
    page = open_page(locale="zh-CN")
    page.get_by_role("textbox", name="你的消息").wait_for()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    reply_with(page, 500, "")
    page.get_by_role("button", name="你好").click()
    assert "服务器" in answers(page)[0]
    page.get_by_role("button", name="English").click()
    assert "The server failed" in answers(page)[0]
    page.reload()
    box(page).wait_for()
    page.get_by_role("button", name="中文").click()
    page.get_by_role("textbox", name="你的消息").wait_for()


def test_all_words_are_there_in_both_languages(page):
    words = page.evaluate("WORDS")
    for key, texts in words.items():
        assert len(texts) == 2 and all(texts), key
        assert len({frozenset(re.findall(r"{\w+}", text)) for text in texts}) == 1, key
    code = "".join(file.read_text("utf-8") for file in PAGES.iterdir())
    assert set(re.findall(r'(?:data-say[\w-]*=|say\()"(\w+)"', code)) <= words.keys()
    assert [key for key in words if f'"{key}"' not in code] == []


def test_it_asks_nobody_but_its_own_server(open_page, server):
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_text("Server is up").wait_for()
    send(page, "x")
    answers(page)
    assert len(asked) >= 3
    assert [url for url in asked if not url.startswith((f"{server.url}/", "data:"))] == []


def test_it_fits_a_phone(open_page):
    page = open_page(viewport=PHONE, has_touch=True)
    reply_with(page, 200, json.dumps({"result": "长" * 300 + "x" * 300}))
    send(page, "y" * 300)
    answers(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    last = page.locator("#log li").last.bounding_box()
    top = page.locator("form").bounding_box()
    assert last["y"] + last["height"] <= top["y"]
    assert top["y"] + top["height"] <= PHONE["height"]


CONTRASTS = """
() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.disabled) continue;
    if (element.matches("script, .hidden")) continue;
    const [a, b] = [getComputedStyle(element).color, background(element)].map(luminance);
    found.push([element.outerHTML.slice(0, 80), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.get_by_text("Server is up").wait_for()
    found = page.evaluate(CONTRASTS)
    reply_with(page, 500, "")
    send(page, "x")
    answers(page)
    box(page).fill("x" * 4001)
    found += page.evaluate(CONTRASTS)
    assert len(found) > 15
    assert [(element, ratio) for element, ratio in found if ratio < 4.5] == []
