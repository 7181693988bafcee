"""1.3: the chat endpoint, over a real socket, around a `load` and a `chat` of the test's own."""

import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections import Counter

from course.grading.kit.cases import NO_OBJECTS
from course.grading.kit.http import Http
from course.grading.kit.rest import Resting
from course.grading.mistakes import fail, require

MANY = 64
"""More than any default thread pool has threads; anyio's has 40."""

CROWD = 208
"""More than one that ends a queue ends it at. Each is an open file, of which macOS gives a process 256."""

MANY_ERRORS = 20
"""More than an answer has slots, of which each error may take one. The server logs a traceback for each."""

LINE_S = 0.005
"""For how long other threads run between two lines, where races are amplified."""


class ModelIsBroken(Exception):
    pass


ERRORS = {
    "break RuntimeError": RuntimeError("CUDA out of memory: 8124 MiB"),
    "break ValueError": ValueError("7731 tensors were lost"),
    "break KeyError": KeyError("kv_cache_4711"),
    "break OSError": OSError(5, "unreadable", "/srv/weights_0815.bin"),
    "break TimeoutError": TimeoutError("gave up after 977 s"),
    "break ModelIsBroken": ModelIsBroken(),
}
BREAKS_ONCE = "break at the first time"
WORDS_OF_ERRORS = ["CUDA", "8124 MiB", "7731", "were lost", "kv_cache", "weights_0815", "gave up"]


# in the room


def app(answer, inside, hold=False, slow_load=False, amplify_races=False):
    """The answer's app. `chat` says "re: " and the text, or raises, once `hold` is let go."""
    notes = inside.notes
    _note_logs(notes)
    notes.update(loads=0, loads_by_create_app=0, texts=[], histories=[], replies=[], blocking=False)
    tiny = inside.tiny

    def load():
        notes["loads"] += 1
        if slow_load and until(inside.serving, 0.15):
            notes["serves_while_it_loads"] = True
            # the app loads while it already takes requests: it gets one
            until(lambda: inside.arrived("/chat"), 1.0)
            time.sleep(0.05)
        notes["loaded"] = True
        return tiny

    def chat(
        model,
        tokenizer,
        text,
        history=None,
        *,
        system="You are a helpful assistant.",
        max_new_tokens=256,
        temperature=0.0,
    ):
        if model is not tiny[0] or tokenizer is not tiny[1]:
            raise TypeError("chat was not given the model and the tokenizer that load() returned")
        notes["blocking"] = notes["blocking"] or inside.on_a_servers_loop()
        notes["histories"].append(inside.plain(history))
        notes["texts"].append(inside.plain(text))
        if hold:
            inside.event("go").wait()
        if text in ERRORS:
            raise ERRORS[text]
        if text == BREAKS_ONCE and notes["texts"].count(text) == 1:
            raise RuntimeError("only at the first time")
        reply = f"re: {text}"
        notes["replies"].append(reply)
        return reply, [*(history or []), (text, reply)]

    if amplify_races:
        _amplify_races(inside)
    made = answer.create_app(load, chat)
    notes["loads_by_create_app"] = notes["loads"]
    return made


def _note_logs(notes):
    """Whatever handlers an answer gives its loggers, `notes["logged"]` has the records and their tracebacks."""
    logged = notes.setdefault("logged", [])

    class Noted(logging.LogRecord):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            with contextlib.suppress(Exception):  # a record whose arguments do not fit
                logged.append(logging.Formatter().format(self))

    logging.setLogRecordFactory(Noted)


def app_with_the_model(answer, inside):
    """The answer's app with the tiny Qwen and the reference `chat`."""
    chat, notes = inside.solution("stage1/chat.py").chat, inside.notes
    notes.update(replies=[], loads=0, swapped=False)

    def load():
        notes["loads"] += 1
        return inside.tiny

    def noted(*args, **kwargs):
        notes["swapped"] = list(args[:2]) == [inside.tiny[1], inside.tiny[0]]
        reply, history = chat(*args, **kwargs)
        notes["replies"].append(reply)
        return reply, history

    return answer.create_app(load, noted)


def app_named(answer, inside, name):
    """The answer's app with a model and a `chat` of that name."""

    def load():
        inside.notes[f"loads of {name}"] = inside.notes.get(f"loads of {name}", 0) + 1
        return f"the model of {name}", f"the tokenizer of {name}"

    def chat(model, tokenizer, text, history=None, **_):
        return f"re: {text}; {name} asks {model} with {tokenizer}", [*(history or []), (text, "")]

    return answer.create_app(load, chat)


def _amplify_races(inside):
    """Lets other threads run between any two lines of the answer that a worker thread runs."""
    runs = Counter()

    def trace(frame, event, arg):
        if inside.on_a_servers_loop():
            sys.settrace(None)
        elif frame.f_code.co_filename == str(inside.answer_file):
            runs[frame.f_lineno] += 1
            if event == "line" and runs[frame.f_lineno] <= 5:
                time.sleep(LINE_S)
            return trace

    threading.settrace(trace)


# what the tests share


def post(http, text):
    return http.post("/chat", json={"text": text})


def start(http, text):
    return http.start("POST", "/chat", json={"text": text})


def until(holds, limit_s):
    """Waits until `holds()`; whether it came to be within the limit."""
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.003)
    return True


def good(reply):
    """Whether it says that all went well. That it is 200 is another test's concern."""
    return 200 <= reply.status < 300


def answered(http, reply, text, mistake, sent=None):
    """Requires the answer to that text. Its exact form is another test's concern."""
    sent = sent or {"text": text}
    if not good(reply):
        fail(mistake, sent=sent, expected="200", **http.facts(reply))
    require(
        f"re: {text}" in reply.text,
        mistake,
        sent=sent,
        expected={"result": f"re: {text}"},
        got=str(reply),
    )


def all_arrive(room, count):
    """Waits until so many POST /chat are under way, as long as more of them come."""
    seen = 0
    while seen < count:
        if room.notes()["blocking"] or not until(lambda: room.arrived("/chat") > seen, 3.0):
            return
        seen = room.arrived("/chat")


def health_answers(room, http, when, before):
    """Requires that GET /health answers, and what it answered before. That this is right is another test's concern."""
    blocked = f"the event loop is blocked: /health does not answer while {when}"
    at_once = '200 {"status": "ok"} at once, however many answers are paused or waiting'
    if room.notes()["blocking"]:
        fail(
            blocked,
            expected=at_once,
            got="a blocking call inside async def: chat runs in the event loop's own thread",
            where=room.where() or None,
        )
    arrived = room.arrived("/health")
    health = http.start("GET", "/health")
    if not health.wait(3.0) and room.arrived("/health") == arrived:
        fail(
            blocked,
            expected=at_once,
            got="nothing: a blocking call inside async def ties up the event loop's own thread",
            where=room.where() or None,
        )
    if not health.done():
        fail(
            f"/health waits in line behind /chat: it does not answer while {when}",
            expected=at_once,
            got="nothing: /health waits for a lock, or for a free thread in a busy pool",
            where=room.where() or None,
        )
    reply = health.reply()
    if reply.status != 200:
        fail(f"/health does not return 200 while {when}", **http.facts(reply))
    require(
        reply.data == before.data,
        f"/health returns the wrong answer while {when}",
        expected=str(before),
        **http.facts(reply),
    )


# the tests


def test_post_chat_answers(room):
    http = Http(room, room.serve(app_with_the_model))
    room.probe.say('你好！\nCall me "Qwen".')
    reply = post(http, "你好")
    facts = http.facts(reply)
    asked = 'POST /chat {"text": "你好"}'
    if reply.status == 422:
        fail(
            "POST /chat refuses a valid body: `text` is a field of the JSON body, not a query parameter",
            sent=asked,
            **facts,
        )
    notes = room.notes()
    mistake = "POST /chat does not return 200"
    if notes["swapped"]:
        mistake = "chat gets the tokenizer before the model: load() returns (model, tokenizer)"
    elif not notes["loads"]:
        mistake = "load is never called: call it when the app starts, with FastAPI(lifespan=...)"
    require(reply.status == 200, mistake, sent=asked, **facts)
    replies = notes["replies"]
    require(
        len(replies) == 1,
        f"one POST /chat calls chat {len(replies)} times instead of once",
        sent=asked,
        **facts,
    )
    expected = {"result": replies[0]}
    require(
        reply.data == expected,
        "POST /chat returns 200 with the wrong JSON: it should be chat's reply under `result`, and nothing else",
        sent=asked,
        expected=expected,
        **facts,
    )
    # with another chat, whose reply may be longer
    http = Http(room, room.serve(app))
    reply = post(http, f" \n{'x' * 3000}\r\n ")
    replies = room.notes()["replies"]
    if replies and good(reply):
        require(
            isinstance(reply.data, dict) and reply.data.get("result") == replies[-1],
            "`result` is not exactly chat's reply: do not strip, cut or replace anything",
            sent="a text of 3,000 letters between spaces and newlines",
            expected=ascii(replies[-1]),
            got=ascii(reply.text),
        )


def test_health_says_ok(shared_room):
    http = Http(shared_room, shared_room.serve(app))
    reply = http.get("/health")
    require(
        reply.status == 200 and reply.data == {"status": "ok"},
        "GET /health does not return the expected answer",
        sent="GET /health",
        expected='200 {"status": "ok"}',
        **http.facts(reply),
    )


def test_start_up_loads_the_model_once(room):
    http = Http(room, room.serve(app, slow_load=True))
    require(
        room.notes()["loads_by_create_app"] == 0,
        "create_app calls load itself: leave that to the app's startup (lifespan)",
        expected="load is called when the server starts, not when the app is created",
    )
    require(
        until(lambda: room.notes()["loads"] > 0, 2.0),
        "the app's startup does not call load: the first user would have to wait for the model",
        expected="the server has started, so load was called once",
        got="load was not called",
    )
    until(lambda: {"serves_while_it_loads", "loaded"} & room.notes().keys(), 2.0)
    mistake = "the first request gets no answer"
    if room.notes().get("serves_while_it_loads"):
        mistake = "a request that arrives while the model is still loading gets no answer: let it wait"
    answered(http, post(http, "first"), "first", mistake)
    loads = room.notes()["loads"]
    require(
        loads == 1,
        "load is not called exactly once: one call returns the model and the tokenizer together",
        expected="1 call to load after startup and one POST /chat",
        got=f"{loads} calls",
    )
    start(http, "break RuntimeError").wait(1.0)
    start(http, "next").wait(1.0)
    loads = room.notes()["loads"]
    require(
        loads == 1,
        "load is called again after an error in chat: the model is still loaded",
        expected="1 call to load in all",
        got=f"{loads} calls",
    )


def test_two_apps_do_not_mix(room):
    named = {name: Http(room, room.serve(app_named, name=name)) for name in ("one", "two")}
    for name in ("one", "two", "one"):
        reply = post(named[name], "hi")
        if not good(reply):
            mistake = f"when one program has two apps, one of them returns {reply.status}"
            fail(mistake, sent=f'app {name} gets {{"text": "hi"}}', **named[name].facts(reply))
        require(
            f"{name} asks the model of {name} with the tokenizer of {name}" in reply.text,
            "two apps in one program share state: keep an app's model and chat in create_app, not in the module",
            sent=f'create_app is called twice; app {name} gets {{"text": "hi"}}',
            expected=f"app {name}'s chat gets what app {name}'s load returned",
            got=str(reply),
        )


def test_text_reaches_chat_unchanged(shared_room):
    http = Http(shared_room, shared_room.serve(app))
    texts = [
        "  two blanks before and after  ",
        "\n\u3000你好\u3000\n",
        "one\ntwo\r\nthree\tfour",
        '👩‍👩‍👧 e\u0301 <b>&amp;</b> %20 \\n "quoted"',
        "<|im_start|>system",
        "\ufeff" + "长" * 1000 + "end",
    ]
    for text in texts:
        reply = post(http, text)
        came = shared_room.notes()["texts"]
        require(
            came[-1:] == [text],
            "the text does not reach chat exactly as it was sent: do not strip, cut or replace anything",
            sent={"text": text},
            expected=ascii(text),
            **({"got": ascii(came[-1])} if came else http.facts(reply)),
        )


def test_a_text_has_1_to_4000_code_points(shared_room):
    http = Http(shared_room, shared_room.serve(app))
    for letter, name in (("a", "letters"), ("你", "Chinese ideographs"), ("😀", "emoji")):
        for count, expected in ((1, 200), (4000, 200), (4001, 422)):
            reply = post(http, letter * count)
            if expected == 422 and not good(reply):
                require(
                    reply.status == 422,
                    f"a `text` that is too long gets {reply.status} instead of 422",
                    sent=f"POST /chat with {letter!r} * {count}",
                    expected=expected,
                    **http.facts(reply),
                )
            require(
                good(reply) if expected == 200 else reply.status == 422,
                f"a text of {count} {name} is"
                f" {'refused, although it is short enough' if count <= 4000 else 'accepted, although it is too long'}:"
                " count code points, as len(text) does",
                sent=f"POST /chat with {letter!r} * {count}",
                expected=expected,
                **http.facts(reply),
            )
    accented = "e\u0301"
    escaped = json.dumps({"text": "😀" * 4000})
    for text, what, is_allowed in (
        (accented * 2000, "2,000 e's, each with a separate accent", True),
        (accented * 2001, "2,001 e's, each with a separate accent", False),
        (f" {'a' * 3999}\n", "3,999 letters between a space and a newline", False),
        (escaped, "4,000 emoji, in JSON as \\ud83d\\ude00", True),
    ):
        body = escaped if text is escaped else json.dumps({"text": text}, ensure_ascii=False)
        reply = http.post("/chat", content=body.encode(), headers={"content-type": "application/json"})
        require(
            good(reply) if is_allowed else reply.status == 422,
            f"a text of {what} is"
            f" {'refused, although it is short enough' if is_allowed else 'accepted, although it is too long'}:"
            " count code points, as len(text) does",
            sent=f"POST /chat {body[:60]}...",
            expected=200 if is_allowed else 422,
            **http.facts(reply),
        )
    reply = post(http, "")
    require(
        reply.status == 422,
        "empty text does not get a 422",
        sent={"text": ""},
        expected=422,
        **http.facts(reply),
    )


def test_other_bodies_are_422(shared_room):
    http = Http(shared_room, shared_room.serve(app))
    bodies = {
        "{}": "a body without `text`",
        '{"Text": "hi"}': "a body without `text`",
        '{"text": null}': "a `text` that is null",
        '{"text": 5}': "a `text` that is a number",
        '{"text": true}': "a `text` that is true",
        '{"text": ["hi"]}': "a `text` that is a list",
        '{"text": {"text": "hi"}}': "a `text` that is an object",
        "text=hi": "a body that is not JSON",
        '{"text": "hi"': "a body that is not JSON",
        **NO_OBJECTS,
    }
    for body, what in bodies.items():
        reply = http.post("/chat", content=body.encode(), headers={"content-type": "application/json"})
        require(
            reply.status == 422,
            f"{what} does not get a 422: the sender should learn that the body is wrong",
            sent=f"POST /chat {body}",
            expected=422,
            **http.facts(reply),
        )


def test_no_history_is_kept(shared_room):
    http = Http(shared_room, shared_room.serve(app))
    for text in ("My name is Ada.", "What is my name?", "And now?"):
        reply = post(http, text)
        histories = shared_room.notes()["histories"]
        if not histories:
            fail("POST /chat does not call chat", sent={"text": text}, **http.facts(reply))
        require(
            not histories[-1],
            "/chat keeps a history: what one user said reaches the next one",
            sent={"text": text},
            expected="chat is called without a history",
            got=histories[-1],
        )


def test_health_answers_while_the_model_works(room):
    http = Http(room, room.serve(app, hold=True))
    before = http.get("/health")
    waiting = start(http, "one")
    if not until(lambda: room.notes()["texts"] or waiting.done(), room.limit_s):
        raise room.hung("POST /chat neither calls chat nor responds")
    if not room.notes()["texts"]:
        fail("POST /chat does not call chat", **http.facts(waiting.reply()))
    health_answers(room, http, "one answer is being generated", before)


def test_health_answers_while_64_requests_wait(room):
    http = Http(room, room.serve(app, hold=True))
    before = http.get("/health")
    _held = [start(http, f"number {number}") for number in range(MANY)]
    all_arrive(room, MANY)
    health_answers(room, http, f"{MANY} answers are paused or waiting", before)


def test_requests_at_once_get_their_answers(room):
    http = Http(room, room.serve(app, hold=True, amplify_races=True))
    texts = [f"<{number % 16}>" for number in range(CROWD)]  # users may ask the same
    waiting = [start(http, text) for text in texts]
    all_arrive(room, CROWD)
    if not room.notes()["blocking"]:
        room.turns()  # says so if the event loop is blocked, as by the `put` of a full queue
    # each has come as far as it can: into chat, into a queue, or to its refusal
    resting = Resting(room.pid)
    rests_s = 1.6 * LINE_S
    until(lambda: resting.check(rests_s), 0.3 * room.limit_s)  # an answer that polls never rests
    room.set("go")
    mixed = "concurrent requests get mixed up: keep each one's data in local variables, not in app.state or globals"
    for text, each in zip(texts, waiting, strict=True):
        reply = each.reply(limit_s=5.0)
        if reply.status in (409, 429, 503):
            fail(
                f"one of {CROWD} concurrent requests was refused: let it wait its turn",
                sent={"text": text},
                expected=200,
                **http.facts(reply),
            )
        came = reply.status if not good(reply) else "a different text"
        another = good(reply) and "re: <" in reply.text
        mistake = f"one of {CROWD} concurrent requests gets {came} instead of its answer"
        answered(http, reply, text, mixed if another else mistake)


def test_an_error_in_chat_is_a_plain_500(room):
    for (text, error), accept in zip(ERRORS.items(), ["*/*", "text/html"] * 3, strict=True):
        # a server for each: what an error does to the next request is another test's concern
        http = Http(room, room.serve(app))
        waiting = http.start("POST", "/chat", json={"text": text}, headers={"accept": accept})
        sent = f"POST /chat with accept: {accept}, and chat raises {error!r}"
        if not waiting.wait(3.0):
            raise room.hung("when chat raises, POST /chat never answers", sent=sent)
        reply = waiting.reply()
        mistake = wrong_in_the_500(reply, error)
        if mistake:
            facts = http.facts(reply)
            # a verdict shows no raw traceback, not even one that the answer sent
            facts["got"] = re.sub(r"(?s)Traceback \(.*", "(a traceback)", facts["got"])
            fail(
                mistake,
                sent=sent,
                expected="a 500 and a few plain words of your own, as JSON or text",
                **facts,
            )
    http = Http(room, room.serve(app))
    waiting = start(http, BREAKS_ONCE)
    require(
        # that it is answered at all has been said above
        not waiting.wait(3.0) or not good(waiting.reply()),
        "chat is called again after it raised: that request should get a 500",
        sent="POST /chat, and chat raises only the first time",
        expected="one call to chat, and a 500",
        got="a 2xx",
    )


def wrong_in_the_500(reply, error):
    text, name = reply.text, type(error).__name__
    content_type = reply.headers.get("content-type", "")
    if reply.status != 500:
        return f"when chat raises, the status is {reply.status} instead of 500"
    if not text.strip():
        return "the 500 has no body: add a message that says the request failed"
    shown = None
    if "Traceback" in text or re.search(r"\bline \d+", text):
        shown = "a traceback"
    elif re.search(rf"\b{name}\b", text):
        shown = f"the exception's type, {name}"
    elif any(word in text for word in WORDS_OF_ERRORS):
        shown = "the exception's message"
    elif re.search(r"\w\.py\b", text):
        shown = "the name of a source file"
    elif content_type.startswith("text/html") or "<html" in text.lower():
        return "the 500 is an HTML page: it should be JSON or plain text"
    return shown and f"the 500 shows {shown}: that belongs in the server's log"


def test_an_error_in_chat_is_in_the_servers_log(room):
    for text in ("break RuntimeError", "break KeyError", "break ModelIsBroken"):
        http = Http(room, room.serve(app))
        waiting = start(http, text)
        # that chat is called, and a 500 is the answer, are other tests' concerns
        if not waiting.wait(3.0) or waiting.reply().status < 500 or text not in room.notes()["texts"]:
            continue
        error, mistake = ERRORS[text], "an error in chat is swallowed: the server's log does not mention it"
        if not str(error):
            mistake = "an error without a message is not named in the server's log: log its type, too"
        names = [name for name in (type(error).__name__, str(error)) if name]

        def logged(names=names):
            return any(name in log for log in (room.output(), *room.notes()["logged"]) for name in names)

        require(
            until(logged, 2.0),
            mistake,
            sent=f"POST /chat, and chat raises {error!r}",
            expected="the log names the error: call a logger's exception(), or let it reach the server",
            got=f"a {waiting.reply().status}, and a log without {' and without '.join(names)}",
        )


def test_after_an_error_the_next_request_is_answered(room):
    http = Http(room, room.serve(app))
    before = http.get("/health")
    mistake = "after an error in chat, the next request does not get a normal answer"
    raised = []
    for text in ("break ValueError", "fine 1", *ERRORS, "fine 2"):
        waiting = start(http, text)
        if text in ERRORS:
            raised.append(type(ERRORS[text]).__name__)
            waiting.wait(1.0)  # that it is answered at all is another test's concern
            continue
        sent = f"chat raised {', '.join(raised)}; then {json.dumps({'text': text})}"
        if not waiting.wait(3.0):
            raise room.hung(mistake, sent=sent)
        answered(http, waiting.reply(), text, mistake, sent)
    start(http, BREAKS_ONCE).wait(1.0)
    again = start(http, BREAKS_ONCE)
    sent = "the same text is sent twice; chat raises only the first time"
    if not again.wait(3.0):
        raise room.hung(mistake, sent=sent)
    answered(http, again.reply(), BREAKS_ONCE, mistake, sent)
    many = [start(http, "break KeyError") for _ in range(MANY_ERRORS)]
    until(lambda: all(each.done() for each in many), 5.0)
    waiting = start(http, "fine again")
    sent = f"chat raised in {MANY_ERRORS} concurrent requests; then {json.dumps({'text': 'fine again'})}"
    if not waiting.wait(5.0):
        raise room.hung(mistake, sent=sent)
    answered(http, waiting.reply(), "fine again", mistake, sent)
    health = http.get("/health")
    require(
        (health.status, health.data) == (before.status, before.data),
        "after an error in chat, /health returns the wrong answer",
        expected=str(before),
        **http.facts(health),
    )
    at_once = ["fine 3", "break ValueError", "fine 4", "break KeyError", "fine 5"]
    waiting = {text: start(http, text) for text in at_once}
    mistake = "an error in one request affects others that run at the same time"
    for text, each in waiting.items():
        if text in ERRORS:
            continue
        if not each.wait(5.0):
            raise room.hung(mistake, sent={"text": text})
        reply = each.reply()
        if reply.status not in (429, 503):  # refusing is another test's concern
            answered(http, reply, text, mistake)
