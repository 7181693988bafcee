"""1.4: the client, against servers that do as the test says and keep what they were sent."""

import json
import threading
import time

from course.grading.kit.scripted_server import (
    RESET,
    SILENCE,
    NobodyListens,
    ScriptedServer,
    head,
    ok_json,
    response,
)
from course.grading.mistakes import fail, require

TEXT = '你好\r\n\n "quoted" 👍🏽 <b>&amp;</b> '
RESULT = "re: 你好\n"

ASYNC = "ask is an async def: it should be an ordinary function"


# in the room


def ask(answer, inside, base_url, text="hi", timeout_s=None):
    """What comes of one call. A timeout of None leaves the answer's default."""
    _no_certificates()
    given = {} if timeout_s is None else {"timeout_s": timeout_s}
    try:
        return inside.outcome(answer.ask, base_url, text, **given)
    except answer.ChatError as error:  # `outcome` takes every Exception
        return _raised("a ChatError that is not a subclass of Exception", str(error))


def ask_each(answer, inside, base_urls, timeout_s):
    """Calls all of them at the same time; their outcomes in that order."""
    outcomes = {}

    def call(url):
        outcomes[url] = ask(answer, inside, url, timeout_s=timeout_s)

    threads = [threading.Thread(target=call, args=(url,), daemon=True) for url in base_urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes.get(url, _raised("SystemExit")) for url in base_urls]


def _raised(kind, message=""):
    return {"raised": [kind], "message": message, "said": f"{kind}: {message}", "where": None}


async def ask_in_a_coroutine(answer, inside, base_url):
    return ask(answer, inside, base_url)


def ask_with_watched_timeouts(answer, inside, base_url, timeout_s):
    """What comes of one call, and the timeouts for reading that httpx was given, in seconds."""
    import httpx

    seen = []

    def watched(send):
        def sent(transport, request):
            timeout = request.extensions.get("timeout", {})
            seen.append(inside.plain(timeout.get("read")))
            return send(transport, request)

        return sent

    for transport, name in (
        (httpx.HTTPTransport, "handle_request"),
        (httpx.AsyncHTTPTransport, "handle_async_request"),
    ):
        setattr(transport, name, watched(getattr(transport, name)))
    return {"outcome": ask(answer, inside, base_url, timeout_s=timeout_s), "timeouts": seen}


def the_chat_endpoint(answer, inside):
    """The reference answer to 1.3, which the answer is to talk to."""

    def chat(model, tokenizer, text):
        return f"re: {text}", []

    return inside.solution("stage1/chat_endpoint.py").create_app(lambda: (None, None), chat)


def _no_certificates():
    # all servers here speak plain http; loading certificates costs 40 ms for each client
    import functools
    import ssl

    ssl.create_default_context = functools.cache(lambda *args, **kwargs: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


# what the tests share


def returned(outcome, expected, mistake, **facts):
    """Requires that the call returned exactly that string."""
    if outcome.get("value") == expected and type(outcome.get("value")) is str:
        return
    facts.setdefault("expected", f"{expected!r}")
    fail(mistake, **facts, **described(outcome))


def came_back(outcome, marker, mistake, **facts):
    """Requires that the call returned the answer. Its exact form is another test's concern."""
    if "value" not in outcome or marker not in str(outcome["value"]):
        fail(mistake, **facts, **described(outcome))


def a_chat_error(outcome, when, **facts):
    """Requires that the call raised ChatError; returns its text."""
    if "ChatError" in outcome.get("raised", ()):
        return outcome["message"]
    if "raised" in outcome:
        kind = outcome["raised"][0]
        mistake = f"{when}, ask raises {kind}: the caller expects only ChatError"
    else:
        mistake = f"{when}, ask returns as if nothing were wrong: it should raise ChatError"
    fail(mistake, expected="ChatError", **facts, **described(outcome))


def described(outcome):
    """An outcome as the facts `got` and `where`."""
    if "raised" in outcome:
        return {"got": outcome["said"], "where": outcome["where"]}
    if is_a_coroutine(outcome):
        return {"got": "a coroutine, and no request"}
    return {"got": f"returned {outcome['value']!r}"}


def is_a_coroutine(outcome):
    value = outcome.get("value")
    return isinstance(value, dict) and value.get("type") == "coroutine"


# the tests


def test_sends_one_post_to_chat(shared_room):
    with ScriptedServer(ok_json({"result": RESULT})) as server:
        outcome = shared_room.play(ask, base_url=server.url, text=TEXT)
    expected = f"one POST /chat with {json.dumps({'text': TEXT}, ensure_ascii=False)}"
    sent = [f"{each.method} {each.target} {each.body.decode()}" for each in server.requests]
    facts = {"expected": expected, "got": " and ".join(sent)}
    if not server.requests:
        mistake = ASYNC if is_a_coroutine(outcome) else "ask sends no request"
        fail(mistake, expected=expected, **described(outcome))
    require(len(sent) == 1, f"ask sends {len(sent)} requests, not one", **facts)
    request = server.requests[0]
    require(request.method == "POST", f"ask sends a {request.method}, not a POST", **facts)
    require(request.path == "/chat", "ask does not send its request to /chat", **facts)
    data = request.data
    require(
        isinstance(data, dict) and data.get("text") == TEXT,
        "the request's body is not a JSON object with the text: with httpx, pass json={...}",
        **facts,
    )
    require(data == {"text": TEXT}, "the request's body contains more than the text: a server may reject that", **facts)


def test_a_slash_or_a_path_in_base_url(shared_room):
    with ScriptedServer(ok_json({"result": RESULT})) as server:
        for end, target in (
            ("", "/chat"),
            ("/", "/chat"),
            ("/qwen/v1", "/qwen/v1/chat"),
            ("/qwen/v1/", "/qwen/v1/chat"),
        ):
            shared_room.play(ask, base_url=server.url + end)
            asked = [each.path for each in server.requests]
            server.requests.clear()
            require(
                target in asked,
                "the request did not go to {base_url}/chat",
                sent=f'ask("{server.url}{end}", ...)',
                expected=target,
                got=", ".join(asked) or "no request",
            )


def test_returns_the_result(shared_room):
    mistake = "ask does not return the server's result unchanged"
    for result in (RESULT, "", "  two blanks  ", '{"result": "nested"}', "null", "😀" * 2000):
        for ensure_ascii in (True, False):
            body = json.dumps({"result": result}, ensure_ascii=ensure_ascii)
            with ScriptedServer([response(200, body)]) as server:
                returned(
                    shared_room.play(ask, base_url=server.url), result, mistake, sent=f"the server answers 200 {body}"
                )
    in_chunks = [
        head(200, transfer_encoding="chunked"),
        b'9\r\n{"result"\r\n',
        b'7\r\n: "hi"}\r\n0\r\n\r\n',
    ]
    with ScriptedServer(in_chunks) as server:
        returned(shared_room.play(ask, base_url=server.url), "hi", mistake, sent="the server answers 200 in two chunks")


def test_talks_to_the_chat_endpoint(room):
    url = room.serve(the_chat_endpoint)
    came_back(
        room.play(ask, base_url=url, text=TEXT),
        "re: ",
        "the endpoint from exercise 1.3 does not understand what ask sends",
        sent=f"ask(base_url, {TEXT!r})",
        expected=f"re: {TEXT}",
    )


def test_works_in_a_running_event_loop(room):
    with ScriptedServer(ok_json({"result": RESULT})) as server:
        came_back(
            room.play(ask_in_a_coroutine, base_url=server.url),
            "re: ",
            "ask fails where an event loop is already running, as in a notebook cell",
            sent="ask(base_url, ...), called inside a coroutine",
            expected=RESULT,
        )


def test_a_4xx_or_5xx_is_a_chat_error(shared_room):
    answers = {
        400: b'{"detail": "bad"}',
        404: b'{"detail": "Not Found"}',
        409: b'{"detail": ""}',
        418: b"",
        422: b'{"detail": [{"loc": ["body", "text"], "msg": "Field required"}]}',
        429: b'{"result": "looks like an answer"}',
        500: b"Internal Server Error",
        502: b"\xff\xfe<html>Bad Gateway</html>",
        503: b'["busy"]',
        504: b'"late"',
        507: b"null",
    }
    for status, body in answers.items():
        with ScriptedServer([response(status, body)]) as server:
            outcome = shared_room.play(ask, base_url=server.url)
        sent = f"the server answers {status} {body.decode(errors='replace')}"
        message = a_chat_error(outcome, f"when the server answers {status}", sent=sent)
        require(
            str(status) in message,
            "the ChatError does not contain the status code",
            sent=sent,
            expected=f"a message that contains {status}",
            **described(outcome),
        )


def test_the_error_says_what_the_server_said(shared_room):
    three_of_422 = {
        "detail": [
            {"loc": ["body", "text"], "msg": "String should have at most 4000 characters"},
            {"loc": ["body", "mode"], "msg": "字段必填"},
            {"loc": ["body", "text"], "msg": "Input should be a valid integer"},
        ]
    }
    page = "<html><h1>Bad Gateway</h1>" + "<p>No server.</p>" * 15 + "<p>Come later.</p></html>"
    answers = [
        (500, '{"detail": "The model failed to answer."}', ["The model failed to answer."]),
        (404, json.dumps({"detail": "没有这个页面"}), ["没有这个页面"]),
        (422, json.dumps(three_of_422), [each["msg"] for each in three_of_422["detail"]]),
        (422, '{"detail": "text is empty"}', ["text is empty"]),
        (503, "Busy. Come back later.", ["Busy. Come back later."]),
        (502, page, [page]),
        (429, '{"error": "slow down"}', ['{"error": "slow down"}']),
        (400, '{"detail": {"code": 7}}', ['{"detail": {"code": 7}}']),
        (409, '{"detail": 7031}', ["7031"]),
        (503, '["busy", "later"]', ['["busy", "later"]']),
        (422, '{"detail": ["odd", "words"]}', ["odd", "words"]),
        (422, '{"detail": [{"type": "missing"}]}', ['[{"type": "missing"}]']),
        (500, '{"error": {"code": 7031}}', ['{"error": {"code": 7031}}']),
    ]
    for status, body, words in answers:
        with ScriptedServer([response(status, body)]) as server:
            outcome = shared_room.play(ask, base_url=server.url)
        message = outcome.get("message", "")
        missing = [each for each in words if each not in message]
        if missing:
            mistake = "the ChatError does not contain what the server said"
            if missing == [body] and '"detail"' in body:
                mistake = "the ChatError does not contain the body as it was sent: `detail` is not text here"
            fail(
                mistake,
                sent=f"the server answers {status} {body}",
                expected=f"a message that contains {' and '.join(missing)}",
                **described(outcome),
            )


def test_no_server_is_a_chat_error(shared_room):
    with NobodyListens() as nobody:
        outcome = shared_room.play(ask, base_url=nobody.url)
    message = a_chat_error(outcome, "when there is no server", sent=f'ask("{nobody.url}", ...)')
    require(
        nobody.url in message,
        "the ChatError does not say which server could not be reached: include base_url",
        sent=f'ask("{nobody.url}", ...)',
        expected=f"a message that contains {nobody.url}",
        **described(outcome),
    )


BROKEN = {
    "before any answer": [],
    "with a reset": [RESET],
    "in the middle of the body": [head(200, content_length=100) + b'{"result": "a'],
    "in the middle of a chunk": [head(200, transfer_encoding="chunked") + b'20\r\n{"result'],
    "in the middle of the body of a 500": [head(500, content_length=100) + b'{"detail": "a'],
    "after an answer that is not HTTP": [b"SSH-2.0-OpenSSH_9.6\r\n"],
}


def test_a_broken_connection_is_a_chat_error(shared_room):
    for how, script in BROKEN.items():
        with ScriptedServer(script) as server:
            outcome = shared_room.play(ask, base_url=server.url)
        a_chat_error(outcome, f"when the connection breaks {how}")


def test_other_200s_are_chat_errors(shared_room):
    bodies = (
        b"It works!",
        b"",
        b"<html></html>",
        b'{"result": "cut o',
        b'"a string"',
        b'["a list"]',
        b"null",
        b"{}",
        b'{"reply": "another name"}',
        b'{"result": null}',
        b'{"result": 5}',
        b'{"result": ["a list"]}',
        b'{"result": {"text": "an object"}}',
        b"no UTF-8: \xff\xfe",
    )
    answers = {f"200 {body.decode(errors='replace')}": response(200, body) for body in bodies}
    answers["200 and `content-encoding: gzip`, but no gzip"] = response(200, b"It works!", content_encoding="gzip")
    for said, answer in answers.items():
        with ScriptedServer([answer]) as server:
            outcome = shared_room.play(ask, base_url=server.url)
        sent = f"the server answers {said}"
        a_chat_error(outcome, "when a 200 does not contain the expected JSON", sent=sent)
    for status in (204, 307):
        with ScriptedServer([response(status, b"")]) as server:
            outcome = shared_room.play(ask, base_url=server.url)
        a_chat_error(outcome, f"when the server answers {status}", sent=f"the server answers {status}, without a body")


def test_nothing_is_sent_twice(shared_room):
    scripts = {
        "answers 503": [response(503, '{"detail": "busy"}', retry_after=0)],
        "breaks the connection": [],
        "sends half an answer": [head(200, content_length=100) + b'{"result": "a'],
        "answers 200 without a result": ok_json({}),
        "redirects to /chat/": [response(307, b"", location="/chat/")],
        # not for ever: a timeout that is ignored is another test's concern
        "sends nothing for longer than timeout_s": [0.5],
    }
    for how, script in scripts.items():
        with ScriptedServer(script) as server:
            shared_room.play(ask, base_url=server.url, timeout_s=0.05 if script == [0.5] else None)
        require(
            len(server.requests) <= 1,
            "ask sends its request again: send only one per call, or the model answers twice",
            sent=f"ask(base_url, ...), and the server {how}",
            expected="1 request",
            got=f"{len(server.requests)} requests",
        )


def test_a_silent_server_is_given_up(room):
    scripts = {
        "sends nothing": [SILENCE],
        "goes silent after the headers": [head(200, content_length=100), SILENCE],
        "goes silent in the middle of the body": [
            head(200, content_length=100) + b'{"result": "a',
            SILENCE,
        ],
    }
    servers = [ScriptedServer(script) for script in scripts.values()]
    asking = room.start(ask_each, base_urls=[each.url for each in servers], timeout_s=0.15)
    until = time.monotonic() + 3
    while not asking.done() and time.monotonic() < until:
        time.sleep(0.01)
    if not asking.done():
        fail(
            "timeout_s is ignored: ask still waits for a server that sends nothing",
            sent="ask(base_url, ..., timeout_s=0.15)",
            expected="ChatError",
            got="nothing after 3 seconds",
            where=room.where() or None,
        )
    for how, outcome in zip(scripts, asking.result(), strict=True):
        a_chat_error(outcome, f"when the server {how}", sent="ask(..., timeout_s=0.15)")


def test_a_slow_server_is_waited_for(room):
    for timeout_s in (None, 33):
        asked_for = 60 if timeout_s is None else timeout_s
        with ScriptedServer(ok_json({"result": RESULT})) as server:
            seen = room.play(ask_with_watched_timeouts, base_url=server.url, timeout_s=timeout_s)
        short = [each for each in seen["timeouts"] if each is not None and each < 0.9 * asked_for]
        require(
            not short,
            "ask gives up too early: pass timeout_s (60 by default) to httpx, which otherwise waits only 5 s",
            sent="ask(base_url, ...)" if timeout_s is None else f"ask(..., timeout_s={timeout_s})",
            expected=f"httpx waits {asked_for} seconds for the server to send something",
            got=f"it waits {short[0] if short else ''} seconds",
        )
    body = json.dumps({"result": "slowly but surely"}).encode()
    pieces = [body[at : at + 5] for at in range(0, len(body), 5)]
    for timeout_s in (0.18, 1.5):  # a second, slower try: a busy machine makes pauses longer
        pause = timeout_s / 6
        script = [head(200, content_length=len(body))]
        for piece in pieces:
            script += [pause, piece]
        with ScriptedServer(script) as server:
            outcome = room.play(ask, base_url=server.url, timeout_s=timeout_s)
        if "value" in outcome:
            break
    came_back(
        outcome,
        "slowly",
        "timeout_s limits the whole answer: it should only limit how long the server may stay silent",
        sent=f"the server sends {len(pieces)} pieces, one every {pause:.2f} s; ask(..., timeout_s={timeout_s})",
    )
