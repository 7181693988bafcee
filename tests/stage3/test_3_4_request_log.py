"""3.4: the log as the lines of its two files, and the middleware as an ASGI app without a server.

What lasts a second or two (`load`, which is called again and again, and other processes) happens in
rooms of its own, while the other tests run. How long a while is, is counted in a heart's beats:
on a slow machine they are slow, too.
"""

import asyncio
import contextlib
import io
import itertools
import json
import logging
import os
import re
import signal
import threading
import time
import types
import warnings
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from course.grading.fixtures import new_room
from course.grading.kit import logs
from course.grading.kit.asgi import SENT, Exchange, get, http, websocket
from course.grading.kit.logs import LOG, WF
from course.grading.kit.processes import Program
from course.grading.mistakes import Ended, Raised, fail, require

WRITER = Path(__file__).parent / "request_log" / "writer.py"
writer = types.ModuleType("writer")
exec(compile(WRITER.read_text(encoding="utf-8"), WRITER, "exec"), writer.__dict__)
WRITERS = 2
FIGURES = (31.8, 93.2, 0)
NO_LINE = "no line"
EARLIER = "made.before.setup_logging"
"""A logger."""

BEAT_S = 0.05
SOON = 16
"""Beats: less than a second, so a thread that sleeps before its first call is seen."""
AGAIN = 50
"""Beats: two seconds, and half a second more."""


# in the room: what scenes share


class Heart:
    """Beats twenty times a second, as far as the machine lets it."""

    def __init__(self):
        self.beats = 0
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self):
        while True:
            time.sleep(BEAT_S)
            self.beats += 1

    def wait(self, holds, beats):
        """Waits until `holds()`; whether it did before that number of beats."""
        last = self.beats + beats
        while not holds():
            if self.beats > last:
                return False
            time.sleep(0.005)
        return True


class Load:
    """A `load` that gives or raises one result after the other, the last again and again."""

    def __init__(self, heart, *results):
        self.heart, self.results = heart, results
        self.calls = []
        """When each call in the background began: the heart's beat, and the seconds until then."""
        self.by_caller = 0
        self._began, self._caller = time.monotonic(), threading.get_ident()

    def __call__(self):
        result = self.results[min(len(self.calls), len(self.results) - 1)]
        if threading.get_ident() == self._caller:
            self.by_caller += 1
        else:
            self.calls.append((self.heart.beats, time.monotonic() - self._began))
        if isinstance(result, Exception):
            raise result
        return result


def mark(inside):
    """A word that no other line of the room contains."""
    return f"mark{next(inside.kept.setdefault('marks', itertools.count()))}:"


def find(inside, folder, word, start=0, name=LOG):
    """The line with that word; None if there is none. Where lines keep failing to come, it waits less."""
    missed = inside.kept.setdefault("missed", {LOG: 0, WF: 0})
    line = logs.line_with(folder, word, name, start, wait_s=1.0 if missed[name] < 2 else 0.05)
    missed[name] += line is None
    return line


def is_there_at_once(folder, word):
    """Whether a line is written by the call that logs it, and not by a thread that works on it later.

    It is logged in a fork of this process, in which no other thread lives on. None where that does not
    come to an end: other threads may have held a lock.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            logging.getLogger("shop").warning(word)
        finally:
            os._exit(0)
    until = time.monotonic() + 2.0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)
    return bool(logs.lines_with(folder, word))


class Said:
    """A message that is not text yet."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def say(inside, folder, text="", level=logging.WARNING, logger="shop", as_object=False):
    """Logs a message, and looks for its lines in the folder.

    Returns {"mark", "log": how many lines it has in one file, "wf": and in the other, "new", "new_wf":
    all that came into them}.
    """
    word = mark(inside)
    message = (Said(f"{word} {text}"),) if as_object else ("%s %s", word, text) if text else (word,)
    starts = {name: logs.size(folder, name) for name in (LOG, WF)}
    logging.getLogger(logger).log(level, *message)
    if logs.size(folder) < starts[LOG]:  # it was rotated
        starts = {LOG: 0, WF: 0}
    find(inside, folder, word, starts[LOG])
    if level >= logging.WARNING:
        find(inside, folder, word, starts[WF], WF)
    new, new_wf = (logs.raw(folder, name, starts[name]).decode("utf-8", "backslashreplace") for name in (LOG, WF))
    return {
        "mark": word,
        "log": len(logs.lines_with(folder, word, LOG, starts[LOG])),
        "wf": len(logs.lines_with(folder, word, WF, starts[WF])),
        "new": new,
        "new_wf": new_wf,
    }


def figures_now(inside, folder):
    """The three figures of a line that is logged now; None if there is none."""
    word = mark(inside)
    start = logs.size(folder)
    logging.getLogger("shop").warning(word)
    line = find(inside, folder, word, start)
    return line.figures if line else None


def come(inside, heart, folder, figures, beats):
    """Whether these figures stand on a line before that number of beats."""
    expected = [str(each) for each in figures]
    last = heart.beats + beats
    while figures_now(inside, folder) != expected:
        if heart.beats > last:
            return False
        time.sleep(BEAT_S / 2)
    return True


def logging_into(answer, inside):
    """The folder into which the shared room logs, from the first call on."""
    if "folder" not in inside.kept:
        folder = os.path.abspath("logs")
        logging.getLogger(EARLIER)
        answer.setup_logging(folder, load=lambda: FIGURES)
        inside.kept["folder"] = folder
    return inside.kept["folder"]


# in the room: lines


def records(answer, inside):
    """Records of several loggers and levels."""
    folder = logging_into(answer, inside)
    own = logging.getLogger("with.a.handler")
    own.addHandler(logging.NullHandler())
    own.setLevel(logging.DEBUG)
    said = []
    for logger, level in [
        ("", logging.INFO),
        ("shop", logging.INFO),
        ("shop.till.drawer", logging.INFO),
        ("with.a.handler", logging.INFO),
        (EARLIER, logging.INFO),
        ("shop", 25),
        ("shop", logging.WARNING),
        ("shop", 35),
        ("shop", logging.ERROR),
        ("shop", logging.CRITICAL),
    ]:
        name = logging.getLevelName(level)
        said.append({"logger": logger or "root", "level": name, **say(inside, folder, "", level, logger)})
    return said


def at_the_call(answer, inside):
    """Whether a line is there when the logging call returns."""
    return is_there_at_once(logging_into(answer, inside), mark(inside))


def after_error(answer, inside):
    """A record of level INFO, where the root logger let nothing below ERROR through before."""
    logging.getLogger().setLevel(logging.ERROR)
    answer.setup_logging("logs", load=lambda: FIGURES)
    return say(inside, os.path.abspath("logs"), "", logging.INFO)["log"]


def extras(answer, inside):
    """The line of a record whose caller gives it one of the line's fields, for each of them.

    None where the call refuses that: `logging` raises a KeyError for what a record has already.
    """
    folder = logging_into(answer, inside)
    found = {}
    for name in ("logid", "cpu", "memory", "gpu"):
        word = mark(inside)
        try:
            logging.getLogger("shop").warning(word, extra={name: "forged"})
        except KeyError:
            found[name] = None
        else:
            line = find(inside, folder, word)
            found[name] = line.text if line else NO_LINE
    return found


def one_line(answer, inside):
    """What stands on a line, and what there is to know of it from elsewhere."""
    folder = logging_into(answer, inside)
    before = datetime.now()
    word = mark(inside)
    logging.getLogger("shop").warning("%s %d loaves", word, 2)
    line = find(inside, folder, word)
    at = None
    if line and (found := re.match(r"\[(.{23})\]", line.text)):
        with contextlib.suppress(ValueError):
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")
    return {
        "line": line.text if line else NO_LINE,
        "whole": bool(line) and line.is_whole,
        "end": f" {word} 2 loaves",
        "in_time": at is not None and abs(at - before) < timedelta(hours=25),
        "pid": os.getpid(),
        "got": {name: line.field(name) for name in ("pid", "level", "logid")} if line else {},
        "wf": [[each.text, each.is_whole] for each in logs.lines_with(folder, word, WF)],
    }


def texts(answer, inside, messages, as_object=False):
    """What of each message stands on its line, in both files: as `as_lines`."""
    folder = logging_into(answer, inside)
    return [as_lines(say(inside, folder, message, as_object=as_object)) for message in messages]


def as_lines(said):
    """{"after": what follows the mark, "new": all that came, "lines": in how many lines} for each file."""
    return [
        {"after": new.partition(said["mark"] + " ")[2] or None, "new": new, "lines": new.count("\n")}
        for new in (said["new"], said["new_wf"])
    ]


def tracebacks(answer, inside):
    """As `texts`, for errors that are logged."""
    folder = logging_into(answer, inside)
    return [log_an_error(inside, folder, with_exception) for with_exception in (True, False)]


def log_an_error(inside, folder, with_exception=True):
    """As `as_lines`, for one error."""

    def inner():
        raise ValueError("a loaf\nis\u2028missing \ud83c")

    starts = {name: logs.size(folder, name) for name in (LOG, WF)}
    word = mark(inside)
    try:
        inner()
    except ValueError as error:
        if with_exception:
            logging.getLogger("shop").exception(f"{word} no bread")
        else:
            logging.getLogger("shop").warning(f"{word} no bread", exc_info=error)
    find(inside, folder, word, starts[LOG])
    find(inside, folder, word, starts[WF], WF)
    new, new_wf = (logs.raw(folder, name, starts[name]).decode("utf-8", "backslashreplace") for name in (LOG, WF))
    return as_lines({"mark": word, "new": new, "new_wf": new_wf})


def stack(answer, inside):
    """As `as_lines`, for a record that brings the stack of its call."""
    folder = logging_into(answer, inside)
    starts = {name: logs.size(folder, name) for name in (LOG, WF)}
    word = mark(inside)
    logging.getLogger("shop").warning(f"{word} no bread", stack_info=True)
    find(inside, folder, word, starts[LOG])
    find(inside, folder, word, starts[WF], WF)
    new, new_wf = (logs.raw(folder, name, starts[name]).decode("utf-8", "backslashreplace") for name in (LOG, WF))
    return as_lines({"mark": word, "new": new, "new_wf": new_wf})


def parents(answer, inside):
    """A folder whose parents are not there, and one line."""
    folder = os.path.abspath("made/by/setup_logging")
    found = inside.outcome(answer.setup_logging, folder, load=lambda: FIGURES)
    if "raised" not in found:
        found["log"] = say(inside, folder)["log"]
    return found


def story(answer, inside):
    """A process that logs into a folder with older files, where things happen, one after the other."""
    import uvicorn

    os.mkdir("logs")
    folder = os.path.abspath("logs")
    for name in (LOG, WF):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"an older line\n")
            file.truncate(300_000_000)  # a hole: it takes no space
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    heard = []

    class Other(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    others = [Other(), logging.StreamHandler(io.StringIO())]
    for other in others:
        logging.getLogger().addHandler(other)
    answer.setup_logging("logs", load=lambda: FIGURES)
    seen = {"first": say(inside, folder, "", logging.WARNING)}
    seen["others"] = [other in logging.getLogger().handlers for other in others]
    seen["heard"] = sum(seen["first"]["mark"] in each for each in heard)
    for name in (LOG, WF):
        with open(os.path.join(folder, name), "rb") as file:
            seen[f"old {name}"] = file.read(14) == b"an older line\n"
    seen["traceback"] = log_an_error(inside, folder)
    uvicorn.Config(lambda: None)
    seen["uvicorn"] = say(inside, folder, "", logging.WARNING)
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    seen["elsewhere"] = say(inside, folder, "", logging.WARNING)
    seen["files elsewhere"] = sorted(str(path) for path in Path().rglob("*"))
    real = time.time, time.time_ns
    time.time, time.time_ns = lambda: real[0]() + 200_000, lambda: real[1]() + 200_000 * 10**9
    try:
        seen["later"] = say(inside, folder, "", logging.WARNING)
    finally:
        time.time, time.time_ns = real
    seen["files"] = sorted(os.listdir(folder))
    seen["moved"] = inside.outcome(answer.setup_logging, "logs", load=lambda: FIGURES)
    seen["same text"] = say(inside, os.path.abspath("logs"), "", logging.WARNING)["log"]
    return seen


def second_calls(answer, inside):
    """`setup_logging` with the directory in which the log is."""
    os.mkdir("logs")
    os.mkdir("made")
    os.symlink("logs", "link")
    folder = os.path.abspath("logs")
    heart = Heart()
    first, second = Load(heart, (1, 1, 1)), Load(heart, (2.5, 2.5, 2))
    answer.setup_logging("logs", load=first)
    soon = heart.wait(lambda: first.calls, SOON)
    answer.setup_logging("logs", load=second)
    seen = {"same": say(inside, folder, "", logging.WARNING), "otherwise": {}}
    for spelled in ("logs/", "./logs", folder, "made/../logs", Path("logs"), Path("made/../logs"), "link"):
        answer.setup_logging(spelled, load=second)
        seen["otherwise"][repr(spelled)] = say(inside, folder, "", logging.WARNING)
    calls = len(first.calls)
    seen["goes_on"] = soon and heart.wait(lambda: len(first.calls) > calls or second.calls, AGAIN)
    seen["second_called"] = len(second.calls)
    return seen


def moves(answer, inside):
    """The log moves, and back."""
    heart = Heart()
    old, new = Load(heart, (1, 1, 1)), Load(heart, (2.5, 2.5, 2))
    answer.setup_logging("first", load=old)
    heart.wait(lambda: old.calls, SOON)
    folders = {name: os.path.abspath(name) for name in ("first", "second")}
    seen = {"lines": []}

    def say_here(name):
        word = mark(inside)
        logging.getLogger("shop").warning(word)
        find(inside, folders[name], word)
        for each, folder in folders.items():
            for file in (LOG, WF):
                count = len(logs.lines_with(folder, word, file))
                seen["lines"].append([f"{each}/{file}", count, int(each == name)])

    say_here("first")
    answer.setup_logging("second", load=new)
    moved = heart.beats
    say_here("second")
    seen["new_called"] = heart.wait(lambda: new.calls, AGAIN)
    seen["new_shown"] = come(inside, heart, folders["second"], (2.5, 2.5, 2), 20)
    heart.wait(lambda: len(new.calls) > 1, AGAIN)
    # a call that had begun when the log moved is not held against it
    seen["old_called"] = sum(beat > moved + 6 for beat, _ in old.calls)
    answer.setup_logging("first", load=old)
    say_here("first")
    return seen


# in the room: load


def over_time(answer, inside):
    """`load` gives figures, then raises."""
    heart = Heart()
    load = Load(heart, (0, 33.333333333333336, 12.5), OSError("no sensor"), (8, 44.25, 1))
    folder = os.path.abspath("logs")
    answer.setup_logging(folder, load=load)
    seen = {"soon": heart.wait(lambda: load.calls, SOON)}
    if not seen["soon"]:
        heart.wait(lambda: load.calls, AGAIN)
    seen["shown"] = come(inside, heart, folder, load.results[0], 10)
    seen["line"] = figures_now(inside, folder)
    calls = len(load.calls) + load.by_caller
    for _ in range(40):
        figures_now(inside, folder)
    seen["per_line"] = len(load.calls) + load.by_caller - calls
    seen["again"] = heart.wait(lambda: len(load.calls) > 1, AGAIN)
    seen["calls"] = [at for _, at in load.calls]
    # what it does about the error, it has then done
    heart.wait(lambda: False, 2)
    seen["after_error"] = figures_now(inside, folder)
    seen["raised"] = len(load.calls) == 2
    return seen


def raises_first(answer, inside):
    """`load` raises, then gives figures."""
    heart = Heart()
    load = Load(heart, _Own("no sensor"), (5.5, 6.5, 7))
    folder = os.path.abspath("logs")
    answer.setup_logging(folder, load=load)
    seen = {"soon": heart.wait(lambda: load.calls, AGAIN)}
    heart.wait(lambda: False, 2)
    seen["line"] = figures_now(inside, folder)
    seen["again"] = heart.wait(lambda: len(load.calls) > 1, AGAIN)
    seen["calls"] = [at for _, at in load.calls]
    seen["shown"] = come(inside, heart, folder, (5.5, 6.5, 7), 20)
    return seen


def held(answer, inside):
    """`load` does not return before the test says so."""
    caller = threading.get_ident()
    go_on = inside.event("go on")
    notes = inside.notes
    notes.update(called=0, called_by_caller=[], at="setup_logging", setup=False, said=None)

    def load():
        notes["called"] += 1
        if threading.get_ident() == caller:
            notes["called_by_caller"].append(notes["at"])
            return FIGURES
        go_on.wait()
        return (1.5, 2.5, 3)

    folder = os.path.abspath("logs")
    answer.setup_logging(folder, load=load)
    notes["setup"] = True
    heart = Heart()
    heart.wait(lambda: notes["called"], AGAIN)
    notes["at"] = "the logging call"
    said = say(inside, folder)
    line = find(inside, folder, said["mark"])
    notes["figures"] = line.figures if line else None
    notes["said"] = said["log"]
    go_on.wait()
    notes["shown"] = come(inside, heart, folder, (1.5, 2.5, 3), AGAIN)


# in the room: requests


def logid_of(inside, folder, word):
    """The logid of the line with that word; NO_LINE if there is none."""
    line = find(inside, folder, word)
    return line.logid if line else NO_LINE


def id_of(exchange, sent=None):
    """What the response says its logid is; what the request said, if it says nothing."""
    return dict(exchange.headers).get("x-log-id", sent)


async def plain_app(scope, receive, send):
    """An ASGI app that logs nothing."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"fine"})


async def places(answer, inside):
    """A FastAPI app that logs wherever a request's work is done: {place: [its logid, the line's]}."""
    from fastapi import BackgroundTasks, FastAPI
    from fastapi.responses import StreamingResponse

    folder = logging_into(answer, inside)
    app = FastAPI()
    app.add_middleware(answer.RequestLog)
    words = {}
    left, late = asyncio.Event(), []

    def note(place):
        words[place] = mark(inside)
        logging.getLogger("shop").warning(words[place])

    @app.get("/0")
    async def in_async_def():
        note("an async def endpoint")

    @app.get("/1")
    def in_def():
        note("a def endpoint")

    @app.get("/2")
    async def in_thread():
        await asyncio.to_thread(note, "asyncio.to_thread")

    @app.get("/3")
    async def in_task():
        async def work():
            await asyncio.sleep(0)
            note("a task")

        async def later():
            await left.wait()
            note("a task that outlives the response")

        late.append(asyncio.create_task(later()))
        await asyncio.gather(work())

    @app.get("/4")
    async def in_a_stream():
        async def pieces():
            for number in (1, 2):
                note(f"piece {number} of a stream")
                yield b"piece"
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    @app.get("/5")
    async def in_a_def_stream():
        def pieces():
            note("a stream's def generator")
            yield b"piece"

        return StreamingResponse(pieces())

    @app.get("/6")
    async def afterwards(tasks: BackgroundTasks):
        tasks.add_task(note, "a background task, after the response")

    found = {}
    for number in range(7):
        before = set(words)
        sent = f"request-{number}"
        exchange = await get(app, f"/{number}", headers=[(b"x-log-id", sent.encode())])
        if number == 3:
            left.set()
            await asyncio.gather(*late)
        for place in words.keys() - before:
            found[place] = [id_of(exchange, sent), logid_of(inside, folder, words[place])]
    return found


async def at_once(answer, inside):
    """A hundred requests, each of which logs when all have begun: [its logid, the lines'] for each."""
    folder = logging_into(answer, inside)
    count = 100
    begun, words = [], [[mark(inside) for _ in range(2)] for _ in range(count)]
    all_begun = asyncio.Event()

    async def app(scope, receive, send):
        first, second = words[int(scope["path"][1:])]
        logging.getLogger("shop").warning(first)
        begun.append(1)
        if len(begun) == count:
            all_begun.set()
        await all_begun.wait()
        logging.getLogger("shop").warning(second)
        await plain_app(scope, receive, send)

    around = answer.RequestLog(app)
    exchanges = [
        Exchange(around, http(f"/{n}", headers=[(b"x-log-id", f"request-{n}".encode())])).start() for n in range(count)
    ]
    for exchange in exchanges:
        await exchange.ended()
    for request in words:
        for word in request:
            find(inside, folder, word)
    ids = {}
    for line in logs.lines(folder):
        if found := re.search(r"mark\d+:", line.text):
            ids[found[0]] = line.logid
    return [
        [id_of(exchange, f"request-{n}"), *[ids.get(word, NO_LINE) for word in words[n]]]
        for n, exchange in enumerate(exchanges)
    ]


async def ids_of(answer, inside, given):
    """For each X-Log-Id given (text whose characters are bytes; None for none): the response's."""
    around = answer.RequestLog(plain_app)
    found = []
    for each in given:
        headers = [] if each is None else [(b"x-log-id", each.encode("latin-1"))]
        exchange = await get(around, headers=headers)
        found.append([value for name, value in exchange.headers if name == "x-log-id"])
    return found


async def new_ids(answer, inside):
    """The logids of requests that bring none: one after the other, at once, at one moment, and of
    one Response that is sent to two."""
    from fastapi import FastAPI, Response

    app = FastAPI()
    app.add_middleware(answer.RequestLog)
    always = Response("always the same")

    @app.get("/")
    def same():
        return always

    async def ids(exchanges):
        return [[value for name, value in each.headers if name == "x-log-id"] for each in exchanges]

    folder, words = logging_into(answer, inside), []

    async def logging_app(scope, receive, send):
        words.append(mark(inside))
        logging.getLogger("shop").warning(words[-1])
        await plain_app(scope, receive, send)

    logged = [await get(answer.RequestLog(logging_app)) for _ in range(2)]
    parts = [part for each in logged[0].messages[0]["headers"] for part in each]
    around = answer.RequestLog(plain_app)
    found = {"after": await ids([await get(around) for _ in range(50)])}
    found["at_once"] = await ids(await asyncio.gather(*[get(around) for _ in range(50)]))
    real = time.time, time.time_ns
    time.time, time.time_ns = lambda: 1_700_000_000.0, lambda: 1_700_000_000 * 10**9
    try:
        found["moment"] = await ids([await get(around) for _ in range(5)])
    finally:
        time.time, time.time_ns = real
    found["same"] = await ids([await get(app) for _ in range(2)])
    found["lines"] = [[id_of(each), logid_of(inside, folder, word)] for each, word in zip(logged, words, strict=True)]
    found["not_bytes"] = [repr(part) for part in parts if not isinstance(part, bytes)]
    return found


async def websockets(answer, inside):
    """The logids of lines logged on two connections at a time, and on one that brings its own."""
    folder = logging_into(answer, inside)
    words = {}

    async def app(scope, receive, send):
        name = scope["path"][1:]
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            words.setdefault(name, []).append(mark(inside))
            logging.getLogger("shop").warning(words[name][-1])
            await send({"type": "websocket.send", "text": "heard"})

    around = answer.RequestLog(app)
    headers = {"own": [(b"x-log-id", b"my_own-ID")]}
    connections = [
        Exchange(around, websocket(f"/{name}", headers=headers.get(name, ()))).start() for name in ("a", "b", "own")
    ]
    connect, text = {"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hi"}
    for connection in connections:
        connection.give(connect, text)
    for connection in connections:
        await connection.sent()
        await connection.sent()
    for connection in connections:
        connection.give(text, {"type": "websocket.disconnect", "code": 1000})
        await connection.ended()
    return {name: [logid_of(inside, folder, word) for word in words.get(name, [])] for name in ("a", "b", "own")}


async def left_behind(answer, inside):
    """The logid of a line that is logged outside of a request: before, and after one of each kind."""
    folder = logging_into(answer, inside)
    found = {}

    def note(when):
        word = mark(inside)
        logging.getLogger("shop").warning(word)
        found[when] = logid_of(inside, folder, word)

    async def fails(scope, receive, send):
        raise RuntimeError("as it should")

    async def starts_up(scope, receive, send):
        note("during the app's start-up (a scope of type lifespan)")

    note("before any request")
    with contextlib.suppress(Exception):  # that it gets there has a test
        await answer.RequestLog(starts_up)({"type": "lifespan", "asgi": {}}, None, None)
    for when, app, scope in (
        ("after a request", plain_app, http(headers=[(b"x-log-id", b"left-behind")])),
        ("after a request that failed", fails, http()),
        ("after a WebSocket connection", fails, websocket()),
    ):
        with contextlib.suppress(RuntimeError):
            await Exchange(answer.RequestLog(app), scope).call()
        note(when)
    return found


async def pieces(answer, inside):
    """Whether each message has come out while the app waits."""
    here, go_on = [], asyncio.Queue()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
            await go_on.get()
        await send({"type": "http.response.body"})

    exchange = Exchange(answer.RequestLog(app), http()).start()
    for number in range(3):
        message = await exchange.sent()
        if number == 0 and message:
            message = await exchange.sent()
        here.append(bool(message) and message.get("body") == b"%d" % number)
        if not here[-1]:
            break
        go_on.put_nowait("next")
    exchange.cancel()
    return here


MESSAGES = {
    **SENT,
    "no headers": [
        {"type": "http.response.start", "status": 204},
        {"type": "http.response.body"},
    ],
    "headers in a tuple": [
        {"type": "http.response.start", "status": 200, "headers": ((b"content-type", b"text/plain"),)},
        {"type": "http.response.body", "body": b"fine"},
    ],
}
RECEIVED = {
    "http": [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
        {"type": "http.disconnect"},
    ],
    "websocket": [{"type": "websocket.connect"}, {"type": "websocket.receive", "bytes": b"\xff"}],
    "lifespan": [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}],
}


async def passing(answer, inside):
    """What an app sends and receives, with the middleware around it and as it is: {case: text} of
    what differs."""
    found = {}
    for case, messages in MESSAGES.items():
        kind = case if case in RECEIVED else "http"
        received = []

        async def app(scope, receive, send, kind=kind, messages=messages, received=received):
            for _ in RECEIVED[kind]:
                received.append(await receive())
            for message in messages:
                await send(dict(message))

        scope = {"websocket": websocket, "http": http}.get(kind, lambda: {"type": "lifespan", "asgi": {}})()
        exchange = Exchange(answer.RequestLog(app), scope).give(*RECEIVED[kind]).start()
        try:
            await exchange.ended()
        except Exception as error:  # noqa: BLE001
            found[case] = {"raised": inside.describe(error)["type"], **_facts(inside, error)}
            continue
        got = [_without_id(message) for message in exchange.messages]
        expected = [_without_id(message) for message in messages]
        if got != expected:
            found[case] = {"expected": _first_other(expected, got), "got": _first_other(got, expected)}
        elif received != RECEIVED[kind]:
            found[case] = {"expected": f"received: {RECEIVED[kind]}", "got": f"received: {received}"}
    return found


def _facts(inside, error):
    described = inside.describe(error)
    return {"got": described["said"], "where": described["where"]}


def as_bytes(text):
    return text if isinstance(text, bytes) else str(text).encode()


def _without_id(message):
    """A message as it is compared: header names in lower case, no X-Log-Id."""
    message = dict(message)
    if message["type"] in ("http.response.start", "websocket.accept"):
        pairs = [(as_bytes(name).lower(), as_bytes(value)) for name, value in message.get("headers") or ()]
        message["headers"] = [pair for pair in pairs if pair[0] != b"x-log-id"]
    if message["type"] == "http.response.body":
        message = {"body": b"", "more_body": False} | message
    return message


def _first_other(these, others):
    for index, each in enumerate(these):
        if index >= len(others) or each != others[index]:
            return str(each)
    return "nothing more"


class _Own(Exception):
    """An error that no middleware knows."""


async def errors(answer, inside):
    """What reaches the server when the app raises."""
    found = {}

    async def before(scope, receive, send):
        raise _Own("no bread")

    async def in_a_stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        raise _Own("no bread")

    for case, app, scope in (
        ("before the response", before, http()),
        ("after a piece", in_a_stream, http()),
        ("on a WebSocket", before, websocket()),
    ):
        exchange = Exchange(answer.RequestLog(app), scope).give({"type": "http.request", "body": b""})
        try:
            await exchange.start().ended()
            found[case] = "nothing was raised"
        except BaseException as error:  # noqa: BLE001
            found[case] = f"{type(error).__name__}: {error}"
    return found


# outside


def start_writers(room):
    """Two processes that write into one folder, one of them in a locale without UTF-8."""
    seen = types.SimpleNamespace(room=room, programs=[])
    seen.folder, seen.steps = room.play(for_writers)
    for number in range(WRITERS):
        arguments = [str(WRITER), str(room.answer_file), seen.folder, seen.steps, str(number), str(WRITERS)]
        locale = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        locale["PYTHONIOENCODING"] = "utf-8"
        seen.programs.append(Program(room, arguments, locale if number == 0 else {}))
    return seen


def for_writers(answer, inside):
    """Where the writers write, and where they say how far they are."""
    names = getattr(getattr(answer.setup_logging, "__code__", None), "co_names", ())
    if names == ("NotImplementedError",):
        answer.setup_logging("logs")  # the stub: here it is found out at once
    Path("steps").write_bytes(bytes(WRITERS))
    return os.path.abspath("shared"), os.path.abspath("steps")


@pytest.fixture(scope="module", autouse=True)
def begin_at_once(request):
    """The background, before the first test, where any test needs it."""
    if any("background" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("background")


@pytest.fixture(scope="module")
def background(request):
    """{scene: (its room, its result to come)}: all that takes a second or two."""
    with contextlib.ExitStack() as stack:
        begun = {}
        for scene in (over_time, raises_first, moves, second_calls, story):
            room = stack.enter_context(new_room(request))
            room.load()
            if scene is story:
                begun["writers"] = start_writers(room)
            begun[scene.__name__] = room, room.start(scene)
        yield begun


def result(background, scene):
    room, playing = background[scene.__name__]
    return playing.result()


def shown(text):
    """A message as it is shown in a verdict, with what no line may hold in the form of `repr`."""
    return repr(text)[1:-1].replace("\\\\", "\\")


@pytest.fixture
def writers(background):
    """The writers, when they have written all or ended."""
    seen = background["writers"]
    room = seen.room

    def written():
        return [os.path.exists(f"{seen.steps}-{number}") for number in range(WRITERS)]

    room.wait(
        lambda: all(done or not program.runs() for done, program in zip(written(), seen.programs, strict=True)),
        "processes that write to the same folder never finish",
    )
    if not all(written()):
        error, where = room.last_error()
        raise Ended(
            "a process that calls setup_logging and then writes to the log ends too early",
            got=error,
            where=where,
            detail=room.output(),
        )
    return seen


# the tests: lines


def test_each_record_is_a_line_when_the_call_returns(shared_room, room):
    for said in shared_room.play(records):
        sent = f"a record at level {said['level']}, logger {said['logger']}"
        require(
            said["log"] >= 1,
            f"a record is not in {LOG}",
            sent=sent,
            expected="a line that ends in a line feed",
            got=said["new"] or "nothing was written",
        )
        require(
            said["log"] == 1,
            f"a record is in {LOG} more than once: lines are duplicated",
            sent=sent,
            expected="one line",
            got=f"{said['log']} lines: {said['new']}",
        )

    require(
        shared_room.play(at_the_call) is not False,
        f"a record is not yet in {LOG} when the logging call returns",
        sent="a warning",
        expected="the line is in the file: nothing is kept in a buffer or a queue",
        got="another thread writes it, later",
    )
    require(
        room.play(after_error) >= 1,
        "if the root logger's level was above WARNING, records at level INFO are not written",
        sent="logging.getLogger().setLevel(logging.ERROR), setup_logging, and a record at level INFO",
        expected="one line",
        got=NO_LINE,
    )


def test_warnings_are_in_the_second_file_too(shared_room):
    for said in shared_room.play(records):
        level = said["level"]
        sent = f"a record at level {level}"
        if level in ("INFO", "Level 25"):
            require(said["wf"] == 0, f"a record below WARNING is in {WF}", sent=sent, expected="WARNING or above")
            continue
        got = f"{said['log']} in {LOG}, {said['wf']} in {WF}"
        facts = {"sent": sent, "expected": f"one line in {LOG}, one in {WF}", "got": got}
        require(said["wf"] >= 1, f"a record at WARNING or above is not in {WF}", **facts)
        require(said["wf"] == 1, f"a record at WARNING or above is in {WF} more than once", **facts)
        require(said["log"] >= 1, f"a record at WARNING or above is in {WF}, but not in {LOG}", **facts)


def test_a_line_looks_as_the_format_says(shared_room):
    seen = shared_room.play(one_line)
    line = seen["line"]
    expected = (
        f"[2024-02-07 16:17:06,436] [pid:{seen['pid']}] [level:WARNING] [logid:default]"
        f" [CPU: {FIGURES[0]}] [Memory: {FIGURES[1]}] [GPU: {FIGURES[2]}]{seen['end']}"
    )
    facts = {"expected": expected, "got": line}
    require(line != NO_LINE, "a warning is not logged at all", **facts)
    require(seen["whole"], "a line does not follow FORMAT", **facts)
    require(seen["in_time"], "a line's time is not the current time", **facts)
    for name, value in (("pid", str(seen["pid"])), ("level", "WARNING")):
        require(seen["got"][name] == value, f"a line's [{name}:...] is not the record's", **facts)
    require(line.endswith(seen["end"]), "a line does not end with the unchanged message", **facts)
    for text, whole in seen["wf"]:
        facts["got"] = text
        require(whole and text.endswith(seen["end"]), f"a line of {WF} does not follow FORMAT", **facts)
    for name, line in shared_room.play(extras).items():
        facts = {"sent": f'logger.warning("...", extra={{"{name}": "forged"}})', "got": line}
        require(
            line != NO_LINE,
            "a record whose caller passes an extra field is lost",
            expected="a line, or a KeyError from the call",
            **facts,
        )
        require(
            line is None or "forged" not in line,
            "a caller's extra= overwrites the request's logid and load's figures on the line",
            expected=f"the logid is `default`, the figures are {FIGURES}",
            **facts,
        )


BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def lines_of(room, messages, **options):
    """(message, file, what stands there) for each message; not where it is not in the second file at all,
    which is the concern of the test of that file."""
    for message, both in zip(messages, room.play(texts, messages=messages, **options), strict=True):
        yield message, LOG, both[0]
        if both[1]["after"] is not None:
            yield message, WF, both[1]


def test_one_record_is_one_line(shared_room):
    messages = [f"one{each}two{each}[2024-02-07 16:17:06,436] [pid:1] three" for each in BREAKS]
    messages.append("ends in one\n")
    objects = lines_of(shared_room, messages[:2], as_object=True)
    for message, file, found in itertools.chain(lines_of(shared_room, messages), objects):
        new = found["new"]
        facts = {"sent": f"a message: {shown(message)}", "expected": shown(message), "got": found["after"] or new}
        require(found["after"] is not None, "a message with a line break is not logged", **facts)
        count = len(new.splitlines())
        require(
            found["lines"] == 1 and count == 1,
            "a message becomes several lines: its sender can forge a log line",
            **facts | {"got": f"{max(2, count)} lines in {file}: {shown(new)}"},
        )
        require(
            found["after"].rstrip("\n") == shown(message),
            "a line break in a message is not written as repr would write it",
            **facts,
        )


def test_a_traceback_is_in_its_messages_line(shared_room, background):
    alone = [found for both in shared_room.play(tracebacks) for found in both]
    # a record keeps what the first handler has made of its traceback
    beside_another = result(background, story)["traceback"]
    for found in [*alone, *beside_another]:
        after, new = found["after"] or "", found["new"]
        if not after and found not in alone[::2]:
            continue
        facts = {
            "sent": 'logger.exception("no bread")',
            "expected": "the message, then the traceback, all on one line",
            "got": f"... {shown(new)[-70:]}",
        }
        require("no bread" in after, "a logged error is not in the log", **facts)
        require(
            found["lines"] == 1 and len(new.splitlines()) == 1,
            "a traceback becomes many lines",
            **facts | {"got": f"{len(new.splitlines())} lines, ending with {shown(new)[-70:]}"},
        )
        require(
            after.startswith("no bread") and "Traceback (most recent call last)" in after,
            "a traceback does not follow its message",
            **facts,
        )
        end = r"ValueError: a loaf\nis\u2028missing \ud83c"
        require(end in after and r"\n  File " in after, "a traceback is not written as repr would write it", **facts)
    for found in shared_room.play(stack):
        count = len(found["new"].splitlines())
        require(
            count <= 1 and found["lines"] <= 1,
            "the stack of a record becomes many lines",
            sent='logger.warning("no bread", stack_info=True)',
            expected="one line",
            got=f"{count} lines, ending with {shown(found['new'])[-70:]}",
        )


def test_half_a_surrogate_is_written_as_repr_does(shared_room):
    messages = ["half \ud83d of one, 你好", "\udc80"]
    for message, _, found in lines_of(shared_room, messages):
        expected = re.sub("[\ud800-\udfff]", lambda half: repr(half[0])[1:-1], message)
        facts = {"sent": f"a message: {ascii(message)[1:-1]}", "expected": expected}
        require(
            found["after"] is not None,
            "a message with a lone surrogate is lost: UTF-8 cannot encode it",
            **facts,
            got=found["new"] or "nothing was written",
        )
        require(
            found["after"].rstrip("\n") == expected,
            "a lone surrogate is not written as repr would write it",
            **facts,
            got=shown(found["after"]),
        )


def test_all_other_text_stays_as_it_is(shared_room):
    messages = [
        r"C:\new\table \n \\ \u2028",
        'it\'s "quoted" {braces} [brackets] <tags> 100 %s',
        "你好, かな, 한국어, é, 👩🏽‍💻",
        "a long one " + "字" * 1200,
        "a tab\t, a no-break space\xa0, a zero-width one\u200b, a bell\x07, \x1b[1mbold\x1b[0m",
    ]
    for message, _, found in lines_of(shared_room, messages):
        facts = {"sent": f"a message: {message}", "expected": message, "got": found["after"] or found["new"]}
        require(found["after"] is not None, "a message is not logged", **facts)
        mistake = "a message is changed in the log"
        if "\\" in message:
            mistake = "backslashes in a message are changed"
        elif "你" in message or "字" in message:
            mistake = "a message is not written unchanged in UTF-8"
        elif "\t" in message:
            mistake = "characters that str.splitlines does not treat as line breaks are changed"
        require(found["after"].rstrip("\n") == message, mistake, **facts)


def test_utf_8_whatever_the_locale(writers):
    messages, torn = messages_of(writers, LOG)
    if torn or len(messages) < len(written_by_all()):
        return  # which is the concern of the test after this one
    found = logs.lines_with(writers.folder, "greeting0", LOG)
    end = found[-1].text if found else NO_LINE
    error, where = writers.room.last_error()
    require(
        end.endswith("你好, whatever the locale"),
        "the file's encoding is the locale's, not UTF-8",
        sent="你好, logged under LC_ALL=C",
        expected="你好, in UTF-8",
        got=error or end,
        where=where,
    )


# the tests: files and calls


def test_the_folder_is_made_with_its_parents(room):
    found = room.play(parents)
    sent = "setup_logging('made/by/setup_logging'), where none of these folders exists yet, and a line"
    if "raised" in found:
        fail(
            "setup_logging does not create the folder's parents",
            sent=sent,
            expected="the folder is created along with its parents",
            got=found["said"],
            where=found["where"],
        )
    require(found["log"] >= 1, "nothing is written to a folder that setup_logging has created", sent=sent)


def test_what_is_in_the_files_stays(background):
    seen = result(background, story)
    if len(seen["files"]) > 2:
        return  # rotated, which is another test's concern
    for name in (LOG, WF):
        require(
            seen[f"old {name}"],
            f"what was in {name} before is gone: append to the log",
            expected="the older lines, then the new ones",
            got="the file begins with something else",
        )


def test_files_are_not_rotated(background):
    seen = result(background, story)
    require(
        seen["files"] == sorted([LOG, WF]),
        "the log's files are rotated: when several processes write, that loses lines",
        sent="files of 300 MB, and a warning two days later",
        expected=f"{LOG} and {WF} in the folder",
        got=", ".join(seen["files"]),
    )


def test_other_handlers_stay(background):
    seen = result(background, story)
    require(
        all(seen["others"]),
        "setup_logging removes other handlers from the root logger",
        expected="the handlers that existed before are still there",
        got=f"{seen['others'].count(False)} of 2 are gone",
    )
    require(seen["heard"] >= 1, "handlers that existed before receive no records after setup_logging")
    require(seen["first"]["log"] >= 1, "with another handler on the root logger, nothing is written to the file")


def test_lines_go_on_after_uvicorn_has_configured_its_logging(background):
    seen = result(background, story)
    if not seen["first"]["log"]:
        return  # which is the concern of the test before
    for file, name in (("log", LOG), ("wf", WF)):
        require(
            seen["uvicorn"][file] >= 1,
            f"nothing is written to {name} after uvicorn has configured its logging: uvicorn closes all handlers",
            sent="uvicorn.Config(app), then a warning",
            expected="a line",
            got="no line",
        )


def test_a_relative_folder_is_that_of_the_call(background):
    seen = result(background, story)
    require(
        not seen["files elsewhere"] and (seen["elsewhere"]["log"] >= 1 or not seen["uvicorn"]["log"]),
        "a relative folder is resolved again for each line: it follows the process from directory to directory",
        sent='setup_logging("logs"), os.chdir("elsewhere"), a warning',
        expected="a line in logs/, in the directory that was current at the time of the call",
        got=f"in elsewhere/: {', '.join(seen['files elsewhere']) or 'nothing'}",
    )
    require(
        seen["same text"] >= 1 or not (seen["first"]["log"] and has_moved(background)),
        "a relative folder is compared as text: after os.chdir, the same text names a different directory",
        sent='setup_logging("logs"), os.chdir("elsewhere"), setup_logging("logs"), and a warning',
        expected="a line in elsewhere/logs/",
        got=seen["moved"].get("said", NO_LINE),
    )


def has_moved(background):
    """Whether a second call with another folder moves the log."""
    return any(count for _, count, expected in result(background, moves)["lines"][4:8] if expected)


def test_another_folder_moves_the_log(background):
    steps = ["setup_logging('first')", "then setup_logging('second')", "then setup_logging('first') again"]
    found = result(background, moves)["lines"]
    for number, step in enumerate(steps):
        four = found[4 * number : 4 * number + 4]
        require(
            any(count for _, count, expected in four if expected) or not any(count for _, count, _ in four),
            "a second call with another folder does not move the log: it stays where it was",
            sent=f"{step}, and a warning",
            expected="a line in the new folder",
            got=", ".join(file for file, count, _ in four if count),
        )
        for file, count, expected in four:
            facts = {"sent": f"{step}, and a warning", "expected": f"{expected} line in {file}", "got": count}
            require(count <= expected or not expected, f"after a move, lines are duplicated in {file}", **facts)
            require(count >= expected, f"after a move, nothing is written to {file}", **facts)
            require(count == expected, f"after a move, lines still go to {file}", **facts)


def test_a_second_call_doubles_no_line(background):
    same = result(background, second_calls)["same"]
    for file, name in (("log", LOG), ("wf", WF)):
        require(
            same[file] == 1,
            f"after a second call, lines are duplicated in {name}"
            if same[file]
            else f"after a second call, nothing is written to {name}",
            sent="setup_logging('logs') twice, and a warning",
            expected="one line",
            got=same[file],
        )


def test_the_same_directory_spelled_otherwise_changes_nothing(background):
    seen = result(background, second_calls)
    for spelled, said in seen["otherwise"].items():
        for file, name in (("log", LOG), ("wf", WF)):
            before = seen["same"][file]
            require(
                said[file] == before,
                f"with the directory spelled differently, lines are duplicated in {name}"
                if said[file] > before
                else f"with the directory spelled differently, nothing is written to {name}",
                sent=f"setup_logging('logs'), then setup_logging({spelled}), and a warning"
                + (" (link is a symbolic link to logs)" if "link" in spelled else ""),
                expected=f"{before} line",
                got=said[file],
            )


def test_the_same_directory_keeps_its_load(background):
    seen = result(background, second_calls)
    require(
        seen["second_called"] == 0,
        "a second call with the same directory sets a new load: it should change nothing",
        sent="setup_logging('logs', load=first), then setup_logging('logs', load=second)",
        expected="first is called again and again, and second is never called",
        got="second was called",
    )
    require(
        seen["goes_on"] or not is_called_again(background),
        "after a second call with the same directory, load is no longer called",
        sent="setup_logging('logs', load=first), then setup_logging('logs', load=second)",
        expected="first is called again within two seconds",
    )


def written_by_all():
    """The messages of all writers."""
    return [writer.text(n, line) for n in range(WRITERS) for line in range(writer.ROUNDS * writer.LINES)]


def messages_of(writers, name):
    """(the messages that are there, the first line that is not whole) of one file."""
    text = logs.raw(writers.folder, name).decode("utf-8", "replace")
    found = [line for line in text.split("\n") if "xxxx" in line or "end of line" in line]
    messages, all_messages = [line[line.find("writer") :] for line in found], set(written_by_all())
    torn = [m for m, line in zip(messages, found, strict=True) if m not in all_messages or line.count("writer") != 1]
    return messages, next(iter(torn), None)


def test_processes_share_the_files(writers):
    expected = written_by_all()
    for name in (LOG, WF):
        messages, torn = messages_of(writers, name)
        facts = {"sent": f"{WRITERS} processes at once, {len(expected) // WRITERS} warnings of 3,800 bytes each"}
        facts["expected"] = f"{len(expected)} whole lines in {name}"
        require(torn is None, f"lines from several processes are broken up in {name}", **facts, got=torn)
        count = len(set(messages))
        require(count == len(expected), f"lines from several processes are lost in {name}", **facts, got=count)
        require(
            len(messages) == count, f"lines from several processes are duplicated in {name}", **facts, got=len(messages)
        )


def test_nothing_keeps_the_process_from_ending(writers):
    writers.room.wait(
        lambda: not any(program.runs() for program in writers.programs),
        "the process does not end: the thread that calls `load` keeps it alive (it is not a daemon, or it is joined)",
        limit_s=3.0,
        sent="a program that calls setup_logging with a load that never returns, writes to the log, and ends",
        expected="the process ends when its last line has run",
    )


# the tests: load


def test_load_is_called_again_and_again(background):
    seen = result(background, over_time)
    facts = {
        "sent": "setup_logging(folder, load=load)",
        "expected": "load is called soon, then every one to two seconds",
    }
    calls = seen["calls"]
    got = f"load was called after {', '.join(f'{at:.1f}' for at in calls)} s" if calls else "no call"
    require(
        seen["per_line"] <= 1, "load is called for each line", **facts, got=f"{seen['per_line']} calls for 40 lines"
    )
    require(bool(calls), "load is never called in the background", **facts, got=got)
    require(seen["soon"], "load is not called soon after setup_logging", **facts, got=got)
    require(seen["again"], "load is not called again within two seconds", **facts, got=got)
    require(calls[1] >= 0.9, "load is called more often than once a second", **facts, got=got)


def test_figures_stand_as_str_shows_them(background):
    seen = result(background, over_time)
    figures = ["0", "33.333333333333336", "12.5"]
    mistake = "the values that load returned do not appear on the line as str formats them"
    if seen["line"] and seen["line"][0] != figures[0] and seen["line"][1:] == figures[1:]:
        mistake = "a figure of 0 is treated as missing: `or` replaces it with another value"
    require(
        seen["shown"],
        mistake,
        sent="a load that returns (0, 33.333333333333336, 12.5), and then a line is logged",
        expected=as_fields(figures),
        got=as_fields(seen["line"]),
    )


def is_called_again(background):
    """Whether load is called again where nothing is in its way."""
    seen = result(background, over_time)
    return seen["soon"] and seen["again"]


def as_fields(figures):
    return "[CPU: {}] [Memory: {}] [GPU: {}]".format(*figures) if figures else NO_LINE


def test_logging_never_waits_for_load(room):
    playing = room.start(held)
    room.wait(lambda: "setup" in room.notes() or playing.done(), "the answer hangs")
    until = time.monotonic() + 4.0
    while not playing.done() and room.notes().get("said") is None and time.monotonic() < until:
        time.sleep(0.01)
    notes = room.notes()
    sent = "a load that does not return"
    called_by = notes.get("called_by_caller") or []
    require(
        not called_by,
        f"{called_by[0] if called_by else ''} calls load itself: a slow load holds up the code that logs",
        sent=sent,
        expected="load is called in a thread in the background",
    )
    if playing.done():
        playing.result()
    if notes.get("said") is None:
        at = notes.get("at")
        raise room.hung(f"{at} waits for load", sent=sent, expected="the code that logs never waits for it")
    require(
        notes["figures"] == ["0.0", "0.0", "0"],
        "before load has returned for the first time, the figures are not 0.0, 0.0 and 0",
        sent=sent,
        expected=as_fields(("0.0", "0.0", "0")),
        got=as_fields(notes["figures"]),
    )
    room.set("go on")
    playing.result()
    require(
        room.notes()["shown"],
        "what a slow load returns never appears on a line",
        sent="a load that returns (1.5, 2.5, 3) after a while",
        expected=as_fields((1.5, 2.5, 3)),
    )


def test_a_load_that_raises_does_no_harm(background):
    seen, later = result(background, raises_first), result(background, over_time)
    sent = "a load that raises an Exception from its own module, and then returns (5.5, 6.5, 7)"
    calls = seen["calls"]
    require(seen["line"] is not None, "when load raises, logging stops", sent=sent, expected="a line", got=NO_LINE)
    require(
        not seen["soon"] or seen["again"] or not is_called_again(background),
        "after load has raised, it is not called again",
        sent=sent,
        expected="load is called again within two seconds",
        got="no second call",
    )
    require(
        len(calls) < 2 or calls[1] >= 0.9 or later["again"] and later["calls"][1] < 0.9,
        "after load has raised, it is called again at once",
        sent=sent,
        expected="load is called again after one to two seconds",
        got=f"load was called after {', '.join(f'{at:.1f}' for at in calls[:4])} s",
    )
    require(
        seen["shown"] or not seen["again"],
        "after load has raised, no new figures appear",
        sent=sent,
        expected=as_fields((5.5, 6.5, 7)),
    )
    require(
        not (later["raised"] and later["shown"]) or later["after_error"] == later["line"],
        "when load raises, the last figures are not kept",
        sent="a load that returns figures, and then raises",
        expected=as_fields(later["line"]),
        got=as_fields(later["after_error"]),
    )


def test_after_a_move_the_new_load_alone_is_called(background):
    seen = result(background, moves)
    sent = "setup_logging('first', load=old), then setup_logging('second', load=new)"
    require(
        seen["new_called"],
        "after a move, the new load is not called",
        sent=sent,
        expected="new is called within two seconds",
    )
    require(
        seen["old_called"] == 0,
        "after a move, the old load is still called",
        sent=sent,
        expected="only new is called",
        got="old is still called: its thread keeps running",
    )
    require(seen["new_shown"], "after a move, the new load's figures never appear on a line", sent=sent)


# the tests: requests


def same_id(found, place):
    logid, line = found[place]
    require(
        logid == line,
        f"a line logged in {place} does not have its request's logid",
        expected=f"[logid:{logid}]",
        got=NO_LINE if line == NO_LINE else f"[logid:{line}]",
    )


def all_places(room):
    if "places" not in room.kept:
        room.kept["places"] = room.play(places)
    return room.kept["places"]


def test_endpoints_log_their_requests_id(shared_room):
    found = all_places(shared_room)
    for place in ("an async def endpoint", "a def endpoint"):
        same_id(found, place)


def test_threads_and_tasks_log_their_requests_id(shared_room):
    found = all_places(shared_room)
    for place in ("asyncio.to_thread", "a task", "a task that outlives the response"):
        same_id(found, place)


def test_streams_log_their_requests_id(shared_room):
    found = all_places(shared_room)
    for place in ("piece 1 of a stream", "piece 2 of a stream", "a stream's def generator"):
        same_id(found, place)
    same_id(found, "a background task, after the response")


def test_a_hundred_at_once_do_not_mix(shared_room):
    for number, (logid, *lines) in enumerate(shared_room.play(at_once)):
        wrong = next((line for line in lines if line != logid), None)
        require(
            wrong is None,
            "lines of concurrent requests have each other's logids",
            sent=f"100 requests at once; the lines of request {number}",
            expected=f"[logid:{logid}]",
            got=f"[logid:{wrong}]",
        )


VALID = re.compile(r"[A-Za-z0-9_-]{1,64}")
MANY = 1000
"""Requests: of 65,536 logids, drawn by lot, two are then the same; of four billion hardly ever."""


def test_a_response_carries_its_logid(shared_room):
    found = shared_room.play(new_ids)
    for ids in (*found["after"], *found["at_once"]):
        require(
            len(ids) == 1,
            "a response has more than one X-Log-Id" if ids else "a response has no X-Log-Id",
            sent="GET /",
            expected="one X-Log-Id, with its request's logid",
            got=", ".join(ids),
        )
    require(
        not found["not_bytes"],
        "X-Log-Id is not written as ASGI requires: a header is a pair of `bytes` objects",
        expected="(b'x-log-id', b'...')",
        got=", ".join(found["not_bytes"]),
    )
    for logid, line in found["lines"]:
        require(
            line in (logid, "default", NO_LINE, None),
            "the X-Log-Id of a response is not the logid on its request's lines",
            sent="GET /, and a line logged for it",
            expected=f"X-Log-Id: {line}",
            got=f"X-Log-Id: {logid}",
        )
    for ids in found["same"]:
        require(
            len(ids) == 1,
            "a Response that is sent twice also carries the logid of the previous request",
            sent="two requests, answered by one Response object",
            expected="one X-Log-Id each",
            got=", ".join(ids),
        )


def test_a_requests_own_id_is_kept(shared_room):
    given = ["a", "17072938263441553", "Az_0-9", "x" * 64, "-", "_"]
    for own, found in zip(given, shared_room.play(ids_of, given=given), strict=True):
        if not found:
            found = [shared_room.play(own_in_a_line, own=own)["line"]]
        require(
            found == [own],
            "a request's own X-Log-Id is not kept",
            sent=f"X-Log-Id: {own}",
            expected=own,
            got=", ".join(map(str, found)),
        )


async def own_in_a_line(answer, inside, own):
    """The logid of a line of a request that brings that one."""
    folder = logging_into(answer, inside)
    word = mark(inside)

    async def app(scope, receive, send):
        logging.getLogger("shop").warning(word)
        await plain_app(scope, receive, send)

    await get(answer.RequestLog(app), headers=[(b"x-log-id", own.encode("latin-1"))])
    return {"line": logid_of(inside, folder, word)}


def test_what_is_no_logid_is_not_believed(shared_room):
    given = [
        "",
        "x" * 65,
        "two words",
        "a.b",
        "a/b",
        'a"b',
        "[x] [level:ERROR]",
        "caf\xe9",
        "\u00b2",
        "\xff\xfe",
        "a\n",
        "a,b",
        "{x}",
    ]
    for own in given:
        try:
            *twice, new, other = shared_room.play(ids_of, given=[own, own, None, None])
        except Raised as raised:
            fail(
                "a request with an invalid X-Log-Id fails instead of getting a new one",
                sent=f"X-Log-Id: {ascii(own)[1:-1]}",
                expected="a new logid",
                got=raised.error["said"],
                where=raised.error["where"],
            )
        ids = twice[0] + twice[1]
        if not ids:
            ids = [shared_room.play(own_in_a_line, own=own)["line"] for _ in range(2)]
        # whether a new one is right, and new each time, is another test's concern
        new_is_valid = all(VALID.fullmatch(each) for each in new + other)
        require(
            all(each != own and (VALID.fullmatch(str(each)) is not None or not new_is_valid) for each in ids),
            "any X-Log-Id is trusted: whatever a stranger sends ends up in the log",
            sent=f"X-Log-Id: {ascii(own)[1:-1]}" + (f" ({len(own)} characters)" if len(own) > 60 else ""),
            expected="a new logid: 1 to 64 characters from A-Z a-z 0-9 _ -",
            got=", ".join(map(str, ids)),
        )
        require(
            len(set(ids)) == len(ids) or new == other,
            "the valid part of an invalid X-Log-Id becomes the logid: make a new one instead",
            sent=f"X-Log-Id: {ascii(own)[1:-1]}, twice",
            expected="a new logid for each",
            got=", ".join(map(str, ids)),
        )


def test_new_logids_are_different_for_each(shared_room, room):
    found = shared_room.play(new_ids)
    ways = {
        "after": "requests one after the other",
        "at_once": "requests at once",
        "moment": "requests at the same moment, as far as the clock can tell",
    }
    for way, sent in ways.items():
        ids = [each for found_ids in found[way] for each in found_ids]
        bad = next((each for each in ids if not VALID.fullmatch(each)), None)
        require(
            bad is None, "a new logid does not consist of 1 to 64 characters from A-Z a-z 0-9 _ -", sent=sent, got=bad
        )
        again = next((each for each in ids if ids.count(each) > 1), None)
        require(again is None, "two requests get the same logid", sent=sent, expected="a new one for each", got=again)
    many = [each for ids in room.play(ids_of, given=[None] * MANY) for each in ids]
    again = len(many) - len(set(many))
    require(
        not again,
        "two requests get the same logid: there are too few possible ones",
        sent=f"{MANY} requests, one after another",
        expected="a different one for each",
        got=f"{again} logids that had already been given out, such as {many[0]}" if again else None,
    )
    both = sorted(set(many) & {each for ids in found["after"] for each in ids})
    require(
        not both,
        "two processes give their requests the same logids",
        sent="requests to two processes, which may write to the same log",
        expected="a different one for each",
        got=", ".join(both[:3]),
    )


def test_a_websocket_has_one_logid(shared_room):
    found = shared_room.play(websockets)
    for ids in found.values():
        facts = {"sent": "two frames on a WebSocket connection, a line logged for each", "got": json.dumps(ids)}
        require(len(ids) == 2, "a WebSocket connection does not get through the middleware", **facts)
        require(NO_LINE not in ids, "a line of a WebSocket connection is not in the log", **facts)
        require(
            "default" not in ids, "a WebSocket connection has no logid", **facts, expected="one logid for all its lines"
        )
        require(len(set(ids)) == 1, "the lines of a WebSocket connection have different logids", **facts)
    require(found["a"][0] != found["b"][0], "two WebSocket connections have the same logid", got=found["a"][0])
    require(
        found["own"][0] == "my_own-ID",
        "a WebSocket connection's own X-Log-Id is not kept",
        sent="X-Log-Id: my_own-ID",
        got=found["own"][0],
    )


def test_outside_of_a_request_it_is_default(shared_room):
    found = shared_room.play(left_behind)
    for when, logid in found.items():
        mistake = "the logid leaks into the context of the middleware's caller"
        if when.startswith(("before", "during")):
            mistake = "outside a request, the logid is not `default`"
        require(
            logid == "default",
            mistake,
            sent=f"a line logged {when}",
            expected="[logid:default]",
            got=f"[logid:{logid}]",
        )


def test_pieces_are_not_delayed(shared_room):
    here = shared_room.play(pieces)
    require(
        all(here),
        "the middleware holds pieces back: they go out later than the app sends them",
        sent="an app that sends a piece, and waits",
        expected="the piece arrives while the app waits",
        got=f"piece {len(here)} of 3 has not arrived",
    )


def test_what_the_app_sends_is_not_changed(shared_room):
    what = {
        "http": "a response with two cookies and trailers",
        "no headers": "a response whose start has no `headers`, as ASGI allows",
        "headers in a tuple": "a response whose `headers` are a tuple, as ASGI allows",
        "websocket": "a WebSocket conversation",
        "lifespan": "the app's start-up and shutdown (a scope of type lifespan)",
    }
    for case, problem in shared_room.play(passing).items():
        mistake = f"the middleware changes {what[case]}"
        if "raised" in problem:
            mistake = f"the middleware fails on {what[case]}"
        fail(
            mistake,
            sent=f"{what[case]}, through RequestLog",
            expected=problem.get("expected"),
            got=problem.get("got"),
            where=problem.get("where"),
        )


def test_errors_pass_through(shared_room):
    for case, got in shared_room.play(errors).items():
        require(
            got == "_Own: no bread",
            "the middleware does not let the app's error through",
            sent=f"an app that raises {case}",
            expected="the same error, with its type and message",
            got=got,
        )
