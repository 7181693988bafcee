"""4.4: the application on a Ray of this computer, its copies around a chat model of the test's own.

One Ray and one application serve all tests: `ray_cluster/held_model.py` is in each copy, and talks with the tests by
files. COURSE_RAY names the folder of a LocalRay that is there already, and whose Ray is then used.

Not covered: more than one machine; a copy that ends and is started again.
"""

import contextlib
import functools
import json
import os
import shutil
import time
import types
from pathlib import Path

import pytest

from course import answers
from course.grading.fixtures import new_room
from course.grading.kit.http import Http
from course.grading.kit.sse import Stream
from course.grading.mistakes import Ended, Hung, fail, require
from course.grading.where import last_error
from course.lessons.local_ray import LocalRay, LocalRayError
from course.manifest import find

HERE = Path(__file__).parent / "ray_cluster"
NAME = "tiny-qwen"
PATH = "/v1/chat/completions"
REPLICAS, MOST = 3, 2
"""Neither is a default, of the exercise or of Ray Serve."""
ASKED = f"serve.run(build(load, replicas={REPLICAS}, max_ongoing_requests={MOST}))"
MANY = 2 * REPLICAS * MOST
"""Requests at once: as many as the copies take, and as many again."""
PIECES = ["Hello", ", ", "world", "!"]
QUIET_S = 1.0
"""What comes too many comes together with the others: this is only for those that come a little later."""


# in the room


def call_the_stub(answer, inside):
    """Where `build` only raises NotImplementedError, this finds it out before there is a Ray."""
    if getattr(getattr(answer.build, "__code__", None), "co_names", ()) == ("NotImplementedError",):
        answer.build(None)


# outside


class Copies:
    """The answer's copies as the tests see them. It stands for a room where the kit asks for one."""

    def __init__(self, local, limit_s):
        self.local, self.url, self.limit_s = local, local.url, limit_s
        self.http = Http(self, local.url)
        self.running = {}
        """What LocalRay.run returned."""
        self.loads = []
        """For each call of `load` before serve.run returned, its process."""

    def notes(self, event, key=""):
        """What the models have noted of that event, in answers to keys that begin so; each copy's in its order."""
        found = []
        for file in sorted((self.local.folder / "notes").iterdir()):
            # the last line may still be being written
            lines = file.read_text(encoding="utf-8").split("\n")[:-1]
            found += map(json.loads, lines)
        return [each for each in found if each["event"] == event and each.get("key", "").startswith(key)]

    def let(self, key, steps):
        """Allows the held answer that many steps in all."""
        half = self.local.folder / "allowed" / f".{key}"
        half.write_text(str(steps), encoding="utf-8")
        half.replace(half.with_name(key))

    def until(self, holds, limit_s=None):
        """Waits until `holds()`; whether it came to be within the limit."""
        until = time.monotonic() + (limit_s or self.limit_s)
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def send(self, body):
        """The Stream of a request."""
        return Stream(self, self.url, body, path=PATH)

    @functools.cached_property
    def crowd(self):
        """What came of many requests at once, all of them held until they had settled."""
        sent = []

        def send():
            sent.append(self.send(ask(f"heldcrowd{len(sent)}", stream=bool(len(sent) % 2))))

        for _ in range(MANY):
            send()
        # as many as are there, where that is not as many as there should be
        pids = {each["pid"] for each in self.notes("load") + self.notes("begun")} - {self.driver}
        room_for = len(pids) * MOST

        def is_full():
            if len(self.notes("begun", "heldcrowd")) >= room_for:
                return True
            # where few may wait, some are refused while others are on their way to a copy: those ask again
            if sum(stream.status != 503 for stream in sent) < MANY and len(sent) < 4 * MANY:
                send()
            return False

        filled = self.until(is_full, self.limit_s / 2)
        time.sleep(QUIET_S)
        begun = self.notes("begun", "heldcrowd")
        for number in range(len(sent)):
            self.let(f"heldcrowd{number}", 100)
        replies = [stream.reply() for stream in sent]
        return types.SimpleNamespace(filled=filled, room_for=room_for, begun=begun, replies=replies)

    @functools.cached_property
    def left(self):
        """{"stream" and "whole": what came of an answer whose client left}."""
        sent = {key: self.send(ask(f"long{key}", stream=key == "stream")) for key in ("stream", "whole")}
        found = {}
        for key, stream in sent.items():
            if not self.until(lambda key=key: len(self.notes("step", f"long{key}")) > 1):
                raise self.hung("the model's second step never happens", sent=stream.sent)
            stream.leave()
        for key in sent:
            ends = lambda key=key: self.notes("left", f"long{key}") + self.notes("finished", f"long{key}")  # noqa: E731
            self.until(ends)
            found[key] = {
                "stopped": self.notes("left", f"long{key}") != [],
                "steps": len(self.notes("step", f"long{key}")),
            }
        return found

    @property
    def driver(self):
        """The process that calls `build`."""
        return self.local.pid

    # what the kit asks of a room

    def last_error(self):
        return last_error(self.output(), str(self.local.work / find("4.4").file))

    def output(self):
        return self.local.output() + self.local.copies_logs()

    def hung(self, mistake, **facts):
        return Hung(mistake, detail=self.output(), **facts)

    def broken(self, mistake, **facts):
        error, where = self.last_error()
        return Ended(mistake, detail=self.output(), **{"got": error, "where": where} | facts)


def ask(content, **more):
    return {"model": NAME, "messages": [{"role": "user", "content": content}], **more}


@pytest.fixture(scope="module")
def copies(request):
    """The application, running."""
    there = os.environ.get("COURSE_RAY")
    with new_room(request) as room, contextlib.ExitStack() as stack:
        file = room.answer_file
        local = None
        if file.is_file() and not answers.is_stub("4.4", file.read_text(encoding="utf-8", errors="replace")):
            # it starts while the room looks at the file
            local = stack.enter_context(LocalRay(paths=[HERE], joins=there))
        room.load()
        room.play(call_the_stub)
        local = local or stack.enter_context(LocalRay(paths=[HERE], joins=there))
        for name in ("notes", "allowed"):
            shutil.rmtree(local.folder / name, ignore_errors=True)
            (local.folder / name).mkdir()
        shutil.copyfile(file, local.work / room.exercise.file)
        found = Copies(local, room.limit_s)
        run(found)
        yield found


def run(copies):
    """Runs the application.

    Raises:
        Ended, Hung: it did not start.
    """
    try:
        copies.running = copies.local.run(
            "held_model:load", limit_s=4 * copies.limit_s, replicas=REPLICAS, max_ongoing_requests=MOST
        )
    except LocalRayError as error:
        _, where = last_error(error.traceback, str(copies.local.work / find("4.4").file))
        _, in_copy = copies.last_error()
        mistake = "the application does not start"
        if "return a serve.Application" in str(error):
            mistake = "build does not return an application: the deployment's .bind() creates one"
        raise Ended(mistake, sent=ASKED, got=str(error), where=where or in_copy, detail=error.traceback) from None
    except TimeoutError as error:
        raise copies.hung("the application does not start", sent=ASKED, got=str(error)) from None
    copies.loads = [each["pid"] for each in copies.notes("load")]


def text_of(stream):
    """The text of an answer's chunks so far."""
    found = []
    for event in list(stream.events):
        with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):
            found.append(event.json["choices"][0]["delta"].get("content") or "")
    return "".join(found)


# the tests


def test_build_loads_nothing_itself(copies):
    require(
        copies.driver not in copies.loads,
        "`load` is called in the process that calls build: each copy should load its own model, in its own process",
        sent=ASKED,
        expected="load is called only in the copies",
        got=f"called in the process that calls build, {copies.loads.count(copies.driver)} time(s)",
    )


def test_each_copy_has_loaded_when_run_returns(copies):
    if copies.driver in copies.loads:
        return  # that has been said above
    facts = {"sent": ASKED, "got": f"load was called in {len(set(copies.loads))} processes"}
    require(
        copies.loads != [],
        "when serve.run returns, no copy has called `load`: the first request to each copy would have to wait for that",
        expected="each copy has called `load` once",
        **facts,
    )
    served = {each["pid"] for each in copies.crowd.begun}
    require(
        served <= set(copies.loads),
        "when serve.run returns, not every copy that takes requests has called `load`",
        expected="each copy has called `load` once",
        **facts,
    )


def test_each_copy_loads_once(copies):
    copies.crowd  # noqa: B018 - after many requests
    pids = [each["pid"] for each in copies.notes("load")]
    most = max(map(pids.count, set(pids) - {copies.driver}), default=0)
    require(
        most <= 1,
        "a copy calls `load` more than once"
        if len(copies.loads) > len(set(copies.loads))
        else "`load` is called again when requests arrive: a copy should load once, when it starts",
        sent=f"{ASKED}, then {MANY} requests",
        expected="one call in each copy",
        got=f"{most} calls in one of them",
    )


def test_as_many_copies_as_replicas_answer(copies):
    pids = {each["pid"] for each in copies.crowd.begun}
    require(
        len(pids) == REPLICAS,
        f"there {'are' if len(pids) != 1 else 'is'} {len(pids)} cop{'ies' if len(pids) != 1 else 'y'},"
        f" but replicas={REPLICAS}: each copy is a separate process",
        sent=f"{ASKED}, then {MANY} requests at once",
        expected=f"{REPLICAS} processes answer",
        got=f"{len(pids)}: {', '.join(map(str, sorted(pids)))}",
    )


def test_a_copy_asks_for_one_cpu_at_most(copies):
    cpus = copies.running["cpus"]
    require(
        cpus <= 1,
        f"a copy asks for {cpus:g} CPUs",
        sent=ASKED,
        expected="at most one: if a machine has fewer CPUs than all copies together ask for, they wait forever",
    )


def test_an_answer_in_one_piece(copies):
    body = ask("hi")
    reply = copies.send(body).reply()
    facts = {"sent": body, "got": str(reply)}
    require(reply.status == 200, f"a valid request gets a {reply.status}", expected=200, **facts)
    with contextlib.suppress(TypeError, LookupError):
        choice = reply.data["choices"][0]
        if choice["message"]["content"] == "".join(PIECES) and choice["finish_reason"] == "stop":
            require(
                reply.data.get("usage") == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10},
                "`usage` is not what the model counted",
                **facts,
            )
            return
    fail("a non-streamed answer is not the same as in 3.7", expected="".join(PIECES), **facts)


def test_a_streamed_answer(copies):
    body = ask("hi", stream=True)
    stream = copies.send(body)
    reply = stream.reply()
    facts = {"sent": body, "got": str(reply)}
    require(reply.status == 200, f"a valid request gets a {reply.status}", expected=200, **facts)
    kind = reply.headers.get("content-type", "")
    require(kind.startswith("text/event-stream"), "a stream's content type is not text/event-stream", **facts)
    require(
        text_of(stream) == "".join(PIECES) and [event.data for event in stream.events[-1:]] == ["[DONE]"],
        "a streamed answer is not the same as in 3.7",
        expected="chunks with the answer's pieces, then data: [DONE]",
        **facts,
    )


def test_errors_are_those_of_the_endpoint(copies):
    body_without_messages = {"model": NAME}
    for body, status, kind, code in (
        (ask("hi") | {"model": "another"}, 404, "invalid_request_error", "model_not_found"),
        (body_without_messages, 400, "invalid_request_error", None),
        (b"{", 400, "invalid_request_error", None),
        (ask("refused", stream=True), 400, "invalid_request_error", "context_length_exceeded"),
        (ask("fails"), 500, "server_error", None),
    ):
        stream = copies.send(body)
        reply = stream.reply()
        facts = {"sent": stream.sent, "got": str(reply)}
        require(
            reply.status == status,
            f"a request that gets a {status} in 3.7 gets a {reply.status} here",
            expected=status,
            **facts,
        )
        error = reply.data.get("error") if isinstance(reply.data, dict) else None
        as_asked = isinstance(error, dict) and error.get("type") == kind and (code is None or error.get("code") == code)
        expected = {"error": {"message": "...", "type": kind, "param": None, "code": code}}
        require(as_asked, "an error does not have the same form as in 3.7", expected=expected, **facts)


def test_the_models_list(copies):
    reply = copies.http.get("/v1/models")
    ids = None
    with contextlib.suppress(TypeError, LookupError):
        ids = [each["id"] for each in reply.data["data"]]
    require(reply.status == 200 and ids == [NAME], "GET /v1/models does not return the same as in 3.7", got=str(reply))


def test_each_piece_is_sent_as_soon_as_it_is_there(copies):
    stream = copies.send(ask("heldpieces", stream=True))
    came = ""
    for number in range(1, len(PIECES) + 1):
        copies.let("heldpieces", number)
        text = "".join(PIECES[:number])
        if not stream.wait(lambda text=text: text_of(stream).startswith(text), copies.limit_s / 3):
            came = text_of(stream)
            break
    copies.let("heldpieces", 100)
    stream.ended()
    if text_of(stream) != "".join(PIECES) or number == len(PIECES):
        return  # that there is text at all is another test's concern
    fail(
        "nothing streams: all pieces arrive after the model has finished"
        if not came
        else f"after {number - 1} pieces, nothing more arrives until the model has finished",
        expected=f"piece {number} arrives while the model is paused at piece {number + 1}",
        got=came or "no text",
    )


def test_a_client_that_leaves_a_stream_stops_the_model(copies):
    require_stopped(copies, "stream", "a stream")


def test_a_client_that_leaves_before_its_answer_stops_the_model(copies):
    require_stopped(copies, "whole", "a non-streamed answer")


def require_stopped(copies, key, what):
    left = copies.left[key]
    require(
        left["stopped"],
        f"the model keeps working after the client of {what} has left",
        sent=f"{what}; its client leaves after two steps",
        expected="what `chat` returned is closed, or its reader is cancelled",
        got=f"{left['steps']} steps",
    )


def test_a_copy_takes_max_ongoing_requests_at_a_time(copies):
    crowd = copies.crowd
    sent = f"{ASKED}, then {MANY} requests at once, all paused"
    most = max((each["running"] for each in crowd.begun), default=0)
    require(
        most <= MOST,
        f"a copy takes {most} requests at a time, but max_ongoing_requests={MOST}",
        sent=sent,
        expected=f"at most {MOST} requests in each copy, while the others wait",
        got=f"{len(crowd.begun)} requests at once in all, and up to {most} in one copy",
    )
    require(
        crowd.filled,
        f"some copies take fewer requests at a time than max_ongoing_requests={MOST}",
        sent=sent,
        expected=f"{crowd.room_for} requests at once in all",
        got=f"{len(crowd.begun)} requests, and up to {most} in one copy",
    )


def test_who_finds_no_place_waits_or_gets_a_503(copies):
    replies = copies.crowd.replies
    sent = f"{ASKED}, then {MANY} requests at once"
    others = [reply for reply in replies if reply.status not in (200, 503)]
    require(
        not others,
        "a request that finds all copies busy neither waits nor gets a 503",
        sent=sent,
        expected="200 or 503",
        got=str(others[:1] and others[0]),
    )
    require(
        sum(reply.status == 200 for reply in replies) >= min(copies.crowd.room_for, len(copies.crowd.begun)),
        "requests are refused although copies had already begun to answer them",
        sent=sent,
        got=[reply.status for reply in replies],
    )
