"""3.2: answers of respond over a real socket, around handlers whose script is the request's body.

    {"id": "a", "kind": "def generator", "pieces": ["one"], "hold": 2, "fails": ["run", 2, "Boom"]}

Whatever is looked for in a verdict is a cause: what the handler noted, what went over the wire, which
records any logger made.
"""

import asyncio
import functools
import itertools
import logging
import re
import time
from dataclasses import dataclass

from course.grading.kit import asgi
from course.grading.kit.cases import TEXTS
from course.grading.kit.http import Http
from course.grading.kit.sse import Stream
from course.grading.mistakes import fail, require

SECRET = "token 4711 of the customer"
LEAKS = re.compile(r"Boom|KeyError|4711|Traceback|four_actions|\.py|File \"|line \d")
"""What may not stand in the answer to a failed request."""
EARLY_STATUS = "a stream's status is sent before its first piece exists: if that piece fails, the client sees a 200"
STREAMS = ("def generator", "async generator", "object")
NUMBERS = itertools.count()
WITH_A_TASK = "a Response with a background task"


# in the room


def app(answer, inside):
    """An app whose one endpoint answers any path by respond, with the handler that the body scripts."""
    from fastapi import FastAPI, HTTPException, Request, Response

    note_logs(inside)
    contexts = {None: None, **{name: made(inside)[name] for name in ("Answer", "Page", "Dated")}}
    app = FastAPI()

    @app.post("/respond")
    async def endpoint(request: Request):
        script = await request.json()
        note = inside.notes.setdefault(script["id"], {"steps": 0, "closed": [], "began": []})
        handler = made(inside)["handlers"][script.get("way", "def")](None)
        handler.script, handler.note, handler.inside = script, note, inside
        try:
            response = await answer.respond(handler, script, request, contexts[script.get("context")])
        except HTTPException:
            note["returned"] = "HTTPException"
            raise
        except Exception as error:
            note["raised"] = f"{type(error).__name__}: {error}"
            raise
        except asyncio.CancelledError:
            note["returned"] = "CancelledError"
            raise
        note["returned"] = type(response).__name__
        if not isinstance(response, Response):
            note["raised"] = f"nothing, but it returned {type(response).__name__}"
        return response

    async def noting_ends(scope, receive, send):
        await app(scope, receive, send)
        if scope["type"] == "http":
            inside.notes.setdefault("ended", []).append(scope["client"][1])

    return noting_ends


async def is_written(answer, inside):
    """Calls respond once: in a server the stub's error would be a 500 like any other."""
    from fastapi import Request

    handler = made(inside)["handlers"]["def"](None)
    handler.script, handler.note = {"kind": "result", "result": "None"}, {"steps": 0, "began": []}
    request = Request({"type": "http", "method": "POST", "headers": []}, receive=asyncio.Event().wait)
    task = asyncio.ensure_future(answer.respond(handler, {}, request))
    await asyncio.wait([task], timeout=1)
    if task.done() and isinstance(task.exception(), NotImplementedError):
        raise task.exception()


async def gone_for_a_second(answer, inside, script):
    """Whether the script is stopped when its client has been gone for a second, and whether it has begun at all.
    The event loop's clock stands still but for that second: nothing that sleeps longer wakes up."""
    from fastapi import Request

    handler = made(inside)["handlers"][script["way"]](None)
    handler.script, handler.inside = script, inside
    handler.note = note = {"steps": 0, "closed": [], "began": []}
    left, now, loop = asyncio.Event(), time.monotonic(), asyncio.get_running_loop()
    real, loop.time = loop.time, lambda: now + left.is_set()
    # what servers say: Starlette looks for the client by itself
    scope = {**asgi.http("/respond", method="POST"), "asgi": {"version": "3.0", "spec_version": "2.3"}}

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    async def serve():
        response = await answer.respond(handler, script, Request(scope, receive))
        await response(scope, receive, send)

    async def until(holds):
        end = time.monotonic() + 2.0
        while not holds() and time.monotonic() < end:
            await asyncio.sleep(0)
            time.sleep(0.0005)  # for threads
        return holds()

    serving = asyncio.ensure_future(serve())
    begun = await until(lambda: f"step {script['hold']}" in note["began"])
    left.set()
    stops = await until(lambda: stopped(script, note))
    serving.cancel()
    loop.time = real
    return {"begun": begun, "stops": stops}


def note_logs(inside):
    """From now on `inside.notes["logs"]` has each record of level ERROR, or with a traceback, that any
    logger makes."""
    logs = inside.notes.setdefault("logs", [])
    make = logging.getLogRecordFactory()

    def noted(*args, **kwargs):
        record = make(*args, **kwargs)
        text = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        if record.levelno >= logging.ERROR or "Traceback" in text:
            log = {"logger": record.name, "level": record.levelname, "traceback": "Traceback" in text}
            lines = [line for line in text.splitlines() if line.strip()] or [""]
            logs.append({**log, "text": lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"})
        return record

    logging.setLogRecordFactory(noted)


class Boom(Exception):
    """An error that is like none of Python's."""


def made(inside):
    """The classes of the scenes: they need the room's FastAPI and four_actions."""
    if "made" not in inside.kept:
        inside.kept["made"] = _make()
    return inside.kept["made"]


def _make():
    from datetime import date

    from fastapi import HTTPException
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.sse import ServerSentEvent
    from four_actions import RequestHandler
    from pydantic import BaseModel, Field
    from starlette.background import BackgroundTask

    class Answer(BaseModel):
        text: str = Field(alias="answerText")
        count: int = 1

        model_config = {"populate_by_name": True}

    class Longer(Answer):
        secret: str = SECRET

    class Page(BaseModel):
        answers: list[Answer]
        next: str | None = None

    class Dated(BaseModel):
        """Takes its fields by alias only, and JSON has no type for one of them."""

        day: date = Field(alias="onDay")

    class Plain(BaseModel):
        text: str

    class Subclass(HTTPException):
        pass

    @dataclass
    class Point:
        x: int
        y: list

    results = {
        "a dict": {"text": "你好", "n": 1, "next": None},
        "a list": [1, "two", None],
        "a string": "text",
        "an empty string": "",
        "an integer": 7,
        "a float": 0.5,
        "zero": 0,
        "False": False,
        "None": None,
        "an empty list": [],
        "a pydantic model": Plain(text="hi"),
        "a dataclass": Point(1, [2]),
        "a dict of models": {"plain": Plain(text="hi"), "points": [Point(3, [])]},
        "a date": {"day": date(2024, 2, 7)},
        "a tuple": (1, 2),
        "a Response": PlainTextResponse("as it is", status_code=201, headers={"X-Own": "yes"}),
        "a JSONResponse": JSONResponse({"error": "teapot"}, status_code=418),
        "an object that is not JSON": object(),
        "a dict keyed by alias": {"answerText": "hi", "count": 2},
        "a dict without the optional field": {"answerText": "hi"},
        "a dict with an extra field": {"answerText": "hi", "count": 2, "secret": SECRET},
        "an instance": Answer(answerText="hi", count=3),
        "an instance of a subclass": Longer(answerText="hi", count=4),
        "a dict that lacks a field": {"count": 2},
        "an empty dict": {},
        "a dict with a wrong type": {"answerText": "hi", "count": "many"},
        "another type": [1, 2],
        "a dict that contains an instance of a subclass": {"answers": [Longer(answerText="hi", count=5)]},
        "an instance that contains an instance of a subclass": Page(answers=[Longer(answerText="hi", count=6)]),
        "a dict with a date": {"onDay": date(2024, 2, 7)},
        "an instance that can be made by alias only": Dated(onDay=date(2024, 2, 7)),
    }
    pieces = {
        "a model": Plain(text="hi"),
        "a dataclass": Point(1, [2]),
        "an event": ServerSentEvent(data={"a": 1}, event="delta", id="7"),
        "raw": ServerSentEvent(raw_data="[DONE]"),
        "not JSON": object(),
    }

    class Handler(RequestHandler):
        def pre_process(self, request_body):
            self.fail("pre_process", 0)
            return request_body

        def run(self, processed_input):
            self.note["began"].append("run")
            kind = self.script["kind"]
            if kind == "def generator":
                return self.generator()
            if kind == "async generator":
                return self.async_generator()
            if kind == "object":
                return Pieces(self)
            self.hold_here(0)
            self.fail("run", 0)
            if self.script["result"] == WITH_A_TASK:
                task = BackgroundTask(self.note["began"].append, "background")
                return PlainTextResponse("as it is", background=task)
            return results[self.script["result"]]

        def post_process(self, inference_result):
            self.fail("post_process", self.note["steps"])
            return inference_result

        def fail(self, action, step):
            where, at, kind = self.script.get("fails", [None, 0, ""])
            if where != action or at != step:
                return
            if "HTTPException" in kind:
                error = HTTPException if kind == "HTTPException" else Subclass
                raise error(self.script["status"], self.script["detail"])
            raise {"Boom": Boom, "KeyError": KeyError}[kind](SECRET)

        def hold_here(self, step):
            if self.script.get("hold") == step:
                self.note["began"].append(f"step {step}")
                self.inside.event(self.script["id"]).wait()

        async def wait_here(self, step):
            if self.script.get("hold") != step:
                return
            self.note["began"].append(f"step {step}")
            try:
                while not self.inside.event(self.script["id"]).is_set():
                    await asyncio.sleep(0.002)
            except asyncio.CancelledError:
                self.note["closed"].append("cancelled")
                raise

        def step(self, number):
            self.note["steps"] = number
            self.fail("run", number)

        def generator(self):
            try:
                for number, piece in enumerate(self.script["pieces"], 1):
                    self.step(number)
                    self.hold_here(number)
                    yield pieces[piece["piece"]] if isinstance(piece, dict) and "piece" in piece else piece
            finally:
                self.note["closed"].append("finally")

        async def async_generator(self):
            try:
                for number, piece in enumerate(self.script["pieces"], 1):
                    self.step(number)
                    await self.wait_here(number)
                    yield pieces[piece["piece"]] if isinstance(piece, dict) and "piece" in piece else piece
            finally:
                self.note["closed"].append("finally")

    class AsyncHandler(Handler):
        async def pre_process(self, request_body):
            return Handler.pre_process(self, request_body)

        async def run(self, processed_input):
            await self.wait_here(0)
            return Handler.run(self, processed_input)

        async def post_process(self, inference_result):
            return Handler.post_process(self, inference_result)

        def hold_here(self, step):
            if step:
                Handler.hold_here(self, step)

    class Pieces:
        def __init__(self, handler):
            self.handler, self.left = handler, list(handler.script["pieces"])

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.handler.step(self.handler.note["steps"] + 1)
            await self.handler.wait_here(self.handler.note["steps"])
            piece = self.left.pop(0)
            return pieces[piece["piece"]] if isinstance(piece, dict) and "piece" in piece else piece

        async def aclose(self):
            self.handler.note["closed"].append("finally")

    return {"handlers": {"def": Handler, "async def": AsyncHandler}, "Answer": Answer, "Page": Page, "Dated": Dated}


# what the tests share


class Service:
    """The served app, as a test asks it."""

    def __init__(self, room):
        self.room = room
        room.play(is_written)
        self.url = room.serve(app)
        self.http = Http(room, self.url)

    def ask(self, **script):
        """Sends a script and waits for the reply."""
        script = {"id": f"request {next(NUMBERS)}", "kind": "result", **script}
        return self.http.post("/respond", json=script)

    def stream(self, **script):
        """Sends a script and reads the answer in the background."""
        script = {"id": f"request {next(NUMBERS)}", "pieces": ["one", "two", "three", "four"], **script}
        stream = Stream(self.room, self.url, script, path="/respond")
        stream.id = script["id"]
        return stream

    def whole(self, stream):
        """The reply of a stream that has come to its end.

        Raises:
            Mistake: it does not, or not with a 200.
        """
        if not stream.begun():
            raise self.room.hung("a request for a stream gets no answer", sent=stream.sent)
        if stream.status != 200:
            reply = stream.reply()
            fail("a stream is not answered with a 200", sent=stream.sent, **self.http.facts(reply))
        return stream.reply()

    def note(self, id):
        return self.room.notes().get(id, {})

    def until(self, id, holds, limit_s=None):
        """Waits until that holds of the request's note; whether it came to."""
        return waited(self.room, lambda: holds(self.note(id)), limit_s)

    def logs(self):
        return self.room.notes()["logs"]

    def ask_for_a_response(self, **script):
        """As `ask`, and requires that respond has returned a Response."""
        id = f"request {next(NUMBERS)}"
        reply = self.ask(id=id, **script)
        if raised := self.note(id).get("raised"):
            mistake = "respond returns something that is not a Response"
            if not raised.startswith("nothing"):
                mistake = "respond raises an error that is not an HTTPException"
            fail(mistake, sent=as_sent(script), expected="a Response", got=raised)
        return reply


def waited(room, holds, limit_s=None):
    """Waits until that holds, for as long as a hang takes; whether it came to."""
    end = time.monotonic() + (limit_s or 0.25 * room.limit_s)
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.004)
    return True


def service(room):
    """The Service of a room that tests share."""
    if "service" not in room.kept:
        room.kept["service"] = Service(room)
    return room.kept["service"]


def require_plain(text, mistake, sent):
    """Requires that a failed request's words give nothing away."""
    require(
        not LEAKS.search(text),
        mistake,
        sent=sent,
        expected="a plain sentence, with nothing from the exception",
        got=f"a traceback, ... {text.splitlines()[-1]}" if "Traceback" in text else text,
    )


def require_logged(room, before, sent, service):
    """Requires that a traceback has been logged at ERROR since."""
    waited(room, lambda: any(is_traceback(log) for log in service.logs()[before:]), 0.1 * room.limit_s)
    logs = service.logs()[before:]
    if any(is_traceback(log) for log in logs):
        return
    mistake = "a failure is not logged: no one can ever find out what it was"
    if any(log["traceback"] for log in logs):
        mistake = f"a failure is logged at level {logs[0]['level']}: it should be ERROR"
    elif logs:
        mistake = "a failure is logged without its traceback: logger.exception, or exc_info=True"
    got = logs[0]["text"].partition("\n")[0] if logs else "no record"
    fail(mistake, sent=sent, expected="a record at level ERROR with the traceback", got=got)


def is_traceback(log):
    return log["level"] in ("ERROR", "CRITICAL") and log["traceback"]


def has_come(stream, text):
    return text in stream.text


def as_sent(script):
    """A script, in words."""
    fails = script.get("fails")
    words = [script.get("kind", "result")]
    if script.get("result"):
        words.append(f"run returns {script['result']}")
    if script.get("context"):
        words.append(f"response_context={script['context']}")
    if fails:
        words.append(f"{script.get('way', 'def')} {fails[0]} raises {fails[2]}")
        if script["kind"] != "result":
            words[-1] += f" at piece {fails[1]}"
    return ", ".join(words)


# the tests


def test_a_result_is_json(shared_room):
    expected = {
        "a dict": {"text": "你好", "n": 1, "next": None},
        "a list": [1, "two", None],
        "a string": "text",
        "an empty string": "",
        "an integer": 7,
        "a float": 0.5,
        "zero": 0,
        "False": False,
        "None": None,
        "an empty list": [],
        "a pydantic model": {"text": "hi"},
        "a dataclass": {"x": 1, "y": [2]},
        "a dict of models": {"plain": {"text": "hi"}, "points": [{"x": 3, "y": []}]},
        "a date": {"day": "2024-02-07"},
        "a tuple": [1, 2],
        "an instance": {"answerText": "hi", "count": 3},
    }
    for name, data in expected.items():
        for way in ("def", "async def"):
            reply = service(shared_room).ask_for_a_response(result=name, way=way)
            facts = service(shared_room).http.facts(reply)
            sent = f"{way} run that returns {name}"
            mistake = f"with {name} as the result, the status is not 200"
            require(reply.status == 200, mistake, sent=sent, expected="200", **facts)
            kind = reply.headers.get("content-type", "").split(";")[0]
            require(
                kind == "application/json",
                "a result is not sent as JSON",
                sent=sent,
                expected="application/json",
                got=kind or "no content type",
            )
            same = reply.data == data and type(reply.data) is type(data)
            mistake = "a result is not encoded the way FastAPI encodes it"
            if isinstance(reply.data, str) and not isinstance(data, str):
                mistake = "a result is encoded as JSON twice, or as text"
            require(same, mistake, sent=sent, expected=repr(data), got=reply.text)


def test_a_response_goes_out_as_it_is(shared_room):
    for context in (None, "Answer"):
        script = {"result": "a Response", "context": context}
        reply = service(shared_room).ask(**script)
        came = (reply.status, reply.text, reply.headers.get("x-own"))
        require(
            came == (201, "as it is", "yes"),
            "a Response is changed before it is sent",
            sent=as_sent(script),
            expected="the 201 unchanged, with its header X-Own",
            got=str(reply),
        )
        reply = service(shared_room).ask(result="a JSONResponse", context=context)
        require(
            (reply.status, reply.data) == (418, {"error": "teapot"}),
            "a Response is changed before it is sent",
            sent=as_sent({"result": "a JSONResponse", "context": context}),
            expected='418 {"error": "teapot"}',
            got=str(reply),
        )
        script = {"id": f"request {next(NUMBERS)}", "result": WITH_A_TASK, "context": context}
        reply = service(shared_room).ask(**script)
        require(
            service(shared_room).until(script["id"], lambda note: "background" in note["began"]),
            "a Response is changed before it is sent: its background task never runs",
            sent=as_sent({"result": WITH_A_TASK, "context": context}),
            expected="after the answer, its BackgroundTask runs",
            got=str(reply),
        )


def test_response_context_shapes_the_result(shared_room):
    expected = {
        "a dict keyed by alias": {"answerText": "hi", "count": 2},
        "a dict without the optional field": {"answerText": "hi", "count": 1},
        "a dict with an extra field": {"answerText": "hi", "count": 2},
        "an instance": {"answerText": "hi", "count": 3},
        "an instance of a subclass": {"answerText": "hi", "count": 4},
        "a dict that contains an instance of a subclass": {"answers": [{"answerText": "hi", "count": 5}], "next": None},
        "an instance that contains an instance of a subclass": {
            "answers": [{"answerText": "hi", "count": 6}],
            "next": None,
        },
        "a dict with a date": {"onDay": "2024-02-07"},
        "an instance that can be made by alias only": {"onDay": "2024-02-07"},
    }
    for name, data in expected.items():
        context = "Page" if "answers" in data else "Dated" if "onDay" in data else "Answer"
        reply = service(shared_room).ask(result=name, context=context)
        facts = {"sent": as_sent({"result": name, "context": context}), "expected": data}
        require(
            reply.status == 200, f"{name} is refused, although it matches response_context", **facts, got=str(reply)
        )
        mistake = "a result is not what response_context turns it into"
        if "secret" in reply.text:
            mistake = "a field that is not in response_context is sent"
        elif isinstance(reply.data, dict) and "next" in data and "next" not in reply.data:
            mistake = "a field that is None is left out, although response_context has it"
        elif isinstance(reply.data, dict) and "text" in reply.data:
            mistake = "with response_context, a result is serialised by field name: it should be by alias"
        require(reply.data == data, mistake, **facts, got=reply.text)


def test_a_result_that_does_not_fit_is_a_500(shared_room):
    for name in ("a dict that lacks a field", "an empty dict", "a dict with a wrong type", "another type", "None"):
        script = {"result": name, "context": "Answer"}
        before = len(service(shared_room).logs())
        reply = service(shared_room).ask(**script)
        sent = as_sent(script)
        mistake = "a result that does not match response_context is sent"
        if reply.status == 422:
            mistake = (
                "a result that does not match response_context is reported as the client's mistake:"
                " it is the server's own"
            )
        require(reply.status == 500, mistake, sent=sent, expected="500", got=str(reply))
        require(bool(reply.body), "a 500 has an empty body", sent=sent)
        mistake = "the 500 for a result that does not match response_context shows what pydantic says about it"
        leaks = [word for word in ("answerText", "pydantic", "validation", "many") if word in reply.text]
        require(not leaks, mistake, sent=sent, expected="a plain sentence", got=reply.text)
        require_logged(shared_room, before, sent, service(shared_room))


def test_each_piece_is_an_event(shared_room):
    for kind in STREAMS:
        stream = service(shared_room).stream(kind=kind, pieces=["one", {"n": 2}, [3]])
        reply = service(shared_room).whole(stream)
        content_type = reply.headers.get("content-type", "").split(";")[0].strip()
        facts = {"sent": f"run returns a stream: {kind}"}
        require(
            content_type == "text/event-stream",
            "the content type of a stream is not text/event-stream",
            **facts,
            got=content_type or "no content type",
        )
        require(
            "no-cache" in reply.headers.get("cache-control", ""),
            "a stream lacks `Cache-Control: no-cache`",
            **facts,
            got=reply.headers.get("cache-control", "no such header"),
        )
        events = [(event.name, event.json) for event in stream.events]
        require(
            events == [("", "one"), ("", {"n": 2}), ("", [3])],
            "the pieces of a stream are not sent as one event each, with the piece as JSON data",
            **facts,
            expected='data: "one", data: {"n": 2}, data: [3]',
            got=reply.text,
        )


def test_any_piece_survives(shared_room):
    for pieces in ([*TEXTS, "", 0, None, False, [], {}], [None, "last"], ["", "last"]):
        stream = service(shared_room).stream(kind="async generator", pieces=pieces)
        service(shared_room).whole(stream)
        for number, piece in enumerate(pieces):
            facts = {"sent": f"piece {number + 1} of {len(pieces)}: {piece!r}"}
            if number >= len(stream.events) or (len(pieces) == 2 and len(stream.events) < 2):
                fail(f"the piece {piece!r} is lost", **facts, got=f"{len(stream.events)} events")
            event = stream.events[number]
            same = event.json == piece and type(event.json) is type(piece) and event.name == ""
            require(same, f"the piece {piece!r} is changed on the way", **facts, got=str(event))
        require(len(stream.events) == len(pieces), "there are more events than pieces", got=stream.text)
    stream = service(shared_room).stream(
        kind="def generator", pieces=[{"piece": name} for name in ("an event", "raw", "a model", "a dataclass")]
    )
    service(shared_room).whole(stream)
    events = [(event.name, event.data if event.data == "[DONE]" else event.json) for event in stream.events]
    require(
        events == [("delta", {"a": 1}), ("", "[DONE]"), ("", {"text": "hi"}), ("", {"x": 1, "y": [2]})]
        and "id: 7" in stream.text,
        "a piece that is a ServerSentEvent, a model or a dataclass is not encoded the way encode_event encodes it",
        expected="event: delta, id: 7, data {'a': 1}; then data: [DONE]; then two JSON objects",
        got=stream.text,
    )


def test_a_stream_without_pieces_is_a_200(shared_room):
    for kind in STREAMS:
        stream = service(shared_room).stream(kind=kind, pieces=[])
        if not stream.begun():
            raise shared_room.hung("a request for a stream without pieces gets no answer", sent=kind)
        reply = stream.reply()
        mistake = "a stream without pieces is not answered with a 200 that contains no events"
        facts = {"sent": f"{kind} without pieces", "expected": "200 text/event-stream with an empty body"}
        kind = reply.headers.get("content-type", "").split(";")[0]
        require(reply.status == 200 and kind == "text/event-stream", mistake, **facts, got=str(reply))
        require(not stream.events, mistake, **facts, got=reply.text)
        mistake = "a stream without pieces lacks `Cache-Control: no-cache`"
        cached = reply.headers.get("cache-control", "no such header")
        require("no-cache" in cached, mistake, sent=facts["sent"], got=cached)


def test_each_piece_is_sent_as_soon_as_it_is_there(shared_room):
    held = {
        3: ("two", "pieces wait for later ones", "paused before its third piece", "one and two come out"),
        2: ("one", "the first piece waits for the second", "paused before its second piece", "one comes out"),
    }
    for kind, (hold, (last, mistake, where, expected)) in itertools.product(STREAMS, held.items()):
        stream = service(shared_room).stream(kind=kind, hold=hold)
        came = stream.wait(functools.partial(has_come, stream, last), 0.25 * shared_room.limit_s)
        got = stream.text or "nothing"
        shared_room.set(stream.id)
        if not came:
            raise shared_room.hung(
                f"{mistake}: send each one as soon as it is ready",
                sent=f"{kind}, {where}",
                expected=expected,
                got=got,
            )


def test_response_context_does_not_concern_streams(shared_room):
    for pieces in (["one", "two"], [{"answerText": "hi", "more": 1}]):
        stream = service(shared_room).stream(kind="async generator", pieces=pieces, context="Answer")
        stream.ended()
        require(
            [event.json for event in stream.events] == pieces,
            "response_context is applied to the pieces of a stream: it is not meant for them",
            sent=f"a stream of {pieces}, response_context=Answer",
            expected=f"200 and {pieces}",
            got=str(stream),
        )


def failures(kind):
    """Scripts in which `kind` is raised before the first piece or the result."""
    for way in ("def", "async def"):
        for action in ("pre_process", "run", "post_process"):
            yield {"kind": "result", "way": way, "result": "a dict", "fails": [action, 0, kind]}
    for stream in STREAMS:
        yield {"kind": stream, "pieces": ["one", "two"], "fails": ["run", 1, kind]}
    yield {"kind": "async generator", "pieces": ["one", "two"], "fails": ["post_process", 1, kind]}


def test_an_http_exception_decides_the_status(shared_room):
    subclass = {"kind": "result", "result": "a dict", "fails": ["run", 0, "a subclass of HTTPException"]}
    for script in (*failures("HTTPException"), subclass):
        for status, detail in ((404, "no such document"), (409, {"code": "busy"}), (503, "ask later")):
            reply = service(shared_room).ask(**script, status=status, detail=detail)
            facts = {"sent": as_sent(script), "expected": f'{status} {{"detail": {detail!r}}}'}
            mistake = "the status is not the HTTPException's"
            if reply.status == 200 and script["kind"] != "result":
                mistake = EARLY_STATUS
            require(reply.status == status, mistake, **facts, got=str(reply))
            mistake = "the detail is not the HTTPException's"
            right = isinstance(reply.data, dict) and reply.data.get("detail") == detail
            require(right, mistake, **facts, got=str(reply))


def other_failures():
    yield from failures("Boom")
    yield {"kind": "result", "result": "a dict", "fails": ["run", 0, "KeyError"]}
    yield {"kind": "result", "result": "an object that is not JSON"}
    yield {"kind": "def generator", "pieces": [{"piece": "not JSON"}]}


def test_any_other_error_is_a_500(shared_room):
    for script in other_failures():
        reply = service(shared_room).ask_for_a_response(**script)
        sent = as_sent(script)
        mistake = "an error that is not an HTTPException does not get a 500"
        if 400 <= reply.status < 500:
            mistake = "the server's own error is reported as the client's, with a 4xx"
        elif reply.status == 200 and script["kind"] != "result":
            mistake = EARLY_STATUS
        require(reply.status == 500, mistake, sent=sent, expected="500", got=str(reply))
        require(bool(reply.body.strip()), "a 500 has an empty body", sent=sent, expected="a plain sentence")


def test_a_500_gives_nothing_away(shared_room):
    for script in other_failures():
        reply = service(shared_room).ask(**script)
        mistake = "the answer to a failed request shows the exception"
        require_plain(reply.text, mistake, as_sent(script))


def test_a_logger_gets_the_traceback(shared_room):
    for script in other_failures():
        before = len(service(shared_room).logs())
        service(shared_room).ask(**script)
        require_logged(shared_room, before, as_sent(script), service(shared_room))


def late_failures():
    for kind in STREAMS:
        yield {"kind": kind, "fails": ["run", 3, "Boom"]}
    yield {"kind": "def generator", "fails": ["post_process", 3, "Boom"]}
    yield {"kind": "async generator", "fails": ["post_process", 3, "Boom"], "way": "async def"}
    yield {"kind": "async generator", "fails": ["run", 3, "HTTPException"], "status": 404, "detail": SECRET}
    yield {"kind": "def generator", "pieces": ["one", "two", {"piece": "not JSON"}, "four"]}


def test_an_error_after_the_first_piece_is_an_event(shared_room):
    for script in late_failures():
        stream = service(shared_room).stream(**script)
        if not stream.begun() or not stream.ended():
            raise shared_room.hung("an error after the first piece does not end the stream", sent=as_sent(script))
        sent, got = as_sent(script), str(stream)
        facts = {"sent": sent, "got": got}
        require(
            not stream.broken,
            "an error after the first piece breaks the connection: the client sees a truncated body",
            expected='event: error, data: {"error": {"message": "..."}}, then the end',
            **facts,
        )
        mistake = "a stream that fails after its first piece does not begin with a 200 and the pieces before the error"
        require(stream.status == 200 and "two" in stream.text, mistake, **facts)
        named = [event for event in stream.events if event.name == "error"]
        mistake = "an error after the first piece is not reported: the stream just ends"
        if "error" in stream.events[-1].data and not named:
            mistake = "the event that reports an error is not named `error`"
        require(
            len(named) == 1,
            mistake,
            expected='event: error, data: {"error": {"message": "..."}}',
            **facts,
        )
        require(stream.events[-1].name == "error", "something follows the error event", **facts)
        data = named[0].json
        message = data["error"].get("message") if isinstance(data, dict) and isinstance(data.get("error"), dict) else 0
        require(
            isinstance(message, str) and message != "",
            'the data of the error event is not {"error": {"message": "..."}}',
            sent=sent,
            expected='{"error": {"message": "a plain sentence"}}',
            got=named[0].data,
        )
        require_plain(named[0].data, "the error event shows the exception", sent)
        pieces = [event.json for event in stream.events[:-1]]
        require(pieces == ["one", "two"], "the pieces before an error are lost, or sent twice", **facts)


def test_an_error_after_the_first_piece_is_logged(shared_room):
    for script in late_failures():
        before = len(service(shared_room).logs())
        stream = service(shared_room).stream(**script)
        stream.ended()
        require_logged(shared_room, before, as_sent(script), service(shared_room))


def test_a_failed_stream_is_closed(shared_room):
    for kind in STREAMS:
        for script in (
            {"kind": kind, "fails": ["post_process", 2, "Boom"]},
            {"kind": kind, "pieces": [{"piece": "not JSON"}, "two"]},
            {"kind": kind, "pieces": ["one", {"piece": "not JSON"}, "three"]},
        ):
            stream = service(shared_room).stream(**script)
            stream.ended()
            require(
                service(shared_room).until(stream.id, lambda note: "finally" in note.get("closed", [])),
                "a stream that failed is left open: run's generator is never closed",
                sent=as_sent(script) + (", a piece is not JSON" if "fails" not in script else ""),
                expected="its finally runs",
                got="it does not",
            )


def leaving():
    """Scripts that are held, with what is closed when their client has left, and how that is said."""
    for kind in STREAMS:
        yield {"kind": kind, "hold": 3}, "mid-stream"
        yield {"kind": kind, "hold": 1}, "before the first piece"
    yield {"kind": "result", "result": "a dict", "hold": 0, "way": "async def"}, "before the result"


def leave(room, script):
    """Sends the script, leaves when it is held, and returns the stream."""
    stream = service(room).stream(**script)
    held = f"step {script['hold']}"
    if not service(room).until(stream.id, lambda note: held in note.get("began", [])):
        reply = str(stream) or "no answer"
        raise room.hung("respond never reaches the step at which its client leaves", sent=script, got=reply)
    if script["hold"] == 3:
        stream.wait(functools.partial(has_come, stream, "two"), 0.1 * room.limit_s)
    stream.leave_and_be_missed()
    return stream


def has_ended(room, port):
    """Whether the app is through with the request from that port."""
    return port in room.notes().get("ended", [])


def stopped(script, note):
    """Whether the note says that what the script runs has been stopped."""
    if script["kind"] == "def generator" or (script["kind"] == "async generator" and script["hold"]):
        return "finally" in note["closed"]
    return "cancelled" in note["closed"]


def test_the_work_stops_when_the_client_leaves(shared_room):
    for script, when in leaving():
        stream = leave(shared_room, script)
        if script["kind"] == "def generator":
            # the step in progress ends by itself, and no other begins once the server has noticed
            waited(shared_room, functools.partial(has_ended, shared_room, stream.port))
            shared_room.set(stream.id)
        stops = service(shared_room).until(stream.id, functools.partial(stopped, script))
        shared_room.set(stream.id)
        sent = f"{script.get('way', '')} {script['kind']}; the client leaves {when}".strip()
        steps = service(shared_room).note(stream.id)["steps"]
        require(
            stops and steps <= script["hold"],
            f"when the client leaves {when}, the work goes on",
            sent=sent,
            expected=f"the generator is closed, an async def action is cancelled, at most {script['hold']} steps",
            got=f"{'stopped' if stops else 'neither closed nor cancelled'}, {steps} steps",
        )
    for script, when in leaving():
        if script["kind"] in ("def generator", "object"):
            continue
        script = {"id": "gone", "way": "def", "pieces": ["one", "two", "three", "four"], **script}
        found = shared_room.play(gone_for_a_second, script=script)
        require(
            found["stops"] or not found["begun"],
            "it is noticed too late that the client has left: the work must stop within a second",
            sent=f"{script['way']} {script['kind']}; the client leaves {when}, and a second passes",
            expected="the generator is closed, an async def action is cancelled",
            got="neither closed nor cancelled: nothing checked meanwhile whether the client was still there",
        )


def test_nobody_waits_for_a_def_action_of_one_who_left(shared_room):
    script = {"kind": "result", "result": "a dict", "hold": 0, "way": "def"}
    stream = leave(shared_room, script)
    returned = service(shared_room).until(stream.id, lambda note: {"returned", "raised"} & set(note))
    shared_room.set(stream.id)
    if not returned:
        raise shared_room.hung(
            "respond waits for a def action whose client has left",
            sent="def run, which takes a long time; the client leaves",
            expected="respond returns any Response at once",
        )


def test_respond_returns_a_response_when_the_client_has_left(shared_room):
    for script, when in leaving():
        if script["hold"] == 3:
            continue
        stream = leave(shared_room, script)
        if script["kind"] == "def generator":
            shared_room.set(stream.id)
        returned = service(shared_room).until(stream.id, lambda note: {"returned", "raised"} & set(note))
        note = service(shared_room).note(stream.id)
        shared_room.set(stream.id)
        sent = f"{script['kind']}; the client leaves {when}"
        mistake = "when the client has left, respond does not return"
        require(returned, mistake, sent=sent, expected="any Response", got="nothing")
        right = "raised" not in note and note["returned"] != "CancelledError"
        mistake = "when the client has left, respond raises"
        got = note.get("raised") or note.get("returned")
        require(right, mistake, sent=sent, expected="any Response", got=got)


def test_nothing_is_logged_because_a_client_left(shared_room):
    before = len(service(shared_room).logs())
    held_def = {"kind": "result", "result": "a dict", "hold": 0, "way": "def"}, "before the result"
    for script, when in [*leaving(), held_def]:
        stream = leave(shared_room, script)
        shared_room.set(stream.id)
        if script != held_def[0]:
            stops = functools.partial(stopped, script)
            service(shared_room).until(stream.id, stops, 0.1 * shared_room.limit_s)
        shared_room.turns()
        logs = [log for log in service(shared_room).logs()[before:] if log["traceback"]]
        require(
            not logs,
            "a traceback is logged because a client left",
            sent=f"{script['kind']}; the client leaves {when}",
            expected="no traceback",
            got=f"{logs[0]['logger']}: {logs[0]['text']}" if logs else "",
        )


def test_the_next_request_works(shared_room):
    for script in (
        {"kind": "result", "result": "a dict", "fails": ["run", 0, "Boom"]},
        {"kind": "def generator", "fails": ["run", 3, "Boom"]},
        {"kind": "async generator", "hold": 2},
    ):
        if "hold" in script:
            stream = leave(shared_room, script)
            shared_room.set(stream.id)
        else:
            service(shared_room).stream(**script).ended()
        reply = service(shared_room).ask(result="a dict")
        facts = service(shared_room).http.facts(reply)
        mistake = "after a failure, or after a client has left, the next request fails"
        require(reply.status == 200, mistake, sent=as_sent(script), **facts)
