"""4.3: the measured chat, between a chat model by script and a reader by script, on a clock that stands still.

A timeline says what happens, one thing after the other: the reader asks, the clock moves, the inner answer gives an
object, the reader leaves. The figures are read from the text that Prometheus would be given.
Each timeline is played twice: with an inner answer that is an async generator, and with one that has `__anext__` and
`aclose` and nothing else.
Not covered: figures between an answer's last object and its end, nor while it is being closed.
"""

import asyncio
import contextlib
import time

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from course.grading.kit.reader_cases import what_comes_is_an_async_iterator
from course.grading.kit.scripted_chat import ScriptedPiece, key_of
from course.grading.mistakes import Raised, fail, require

MANY = 64
TURNS = 100
"""Of an event loop, which is more than any answer needs that waits for nothing else."""
OUTCOMES = ("stop", "length", "error", "cancelled")
NEEDS = ["__aiter__", "__anext__", "aclose"]
KINDS = ("an async generator", "an object with __anext__ and aclose")

REQUESTS = "llm_requests_total"
PROMPT, COMPLETION = "llm_prompt_tokens_total", "llm_completion_tokens_total"
IN_FLIGHT = "llm_requests_in_flight"
FIRST, BETWEEN, WHOLE = (
    "llm_time_to_first_token_seconds",
    "llm_inter_token_latency_seconds",
    "llm_request_seconds",
)
METRICS = {
    REQUESTS: "counter",
    PROMPT: "counter",
    COMPLETION: "counter",
    IN_FLIGHT: "gauge",
    FIRST: "histogram",
    BETWEEN: "histogram",
    WHOLE: "histogram",
}
COUNTS = (REQUESTS, PROMPT, COMPLETION, IN_FLIGHT, "_count")
ERRORS = ("RuntimeError", "ValueError", "TimeoutError", "ModelError")


# in the room: the inner chat model


class ModelError(Exception):
    """An error of the model's own, which cannot be made again from its text."""

    def __init__(self, code, words):
        super().__init__(f"{words} ({code})")


def error_named(name):
    if name == "ModelError":
        return ModelError(7, "the model fails")
    return {"RuntimeError": RuntimeError, "ValueError": ValueError, "TimeoutError": TimeoutError}[name](
        "the model fails"
    )


class Feed:
    """What one inner answer gives, and what becomes of it."""

    def __init__(self):
        self.events = asyncio.Queue()
        self.asked = self.given = 0
        self.closed = False

    async def next(self):
        self.asked += 1
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        return event


async def generator(feed):
    try:
        while (found := await feed.next()) is not None:
            yield found
    finally:
        await turn(5)


class Plain:
    """An inner answer of its own class. An error or a cancellation ends it, and only its end or aclose() closes it."""

    def __init__(self, feed):
        self.feed, self.over = feed, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.feed.closed or self.over:
            raise StopAsyncIteration
        try:
            found = await self.feed.next()
        except BaseException:
            self.over = True
            raise
        if found is None:
            self.feed.closed = True
            raise StopAsyncIteration
        return found

    async def aclose(self):
        await turn(5)
        self.feed.closed = True


class Inner:
    """3.6's chat model by script. An answer's key is the content of its last message."""

    def __init__(self, kind):
        self._kind = kind
        self.feeds, self.calls, self.refused = {}, [], {}
        self._opened = []

    def feed(self, key):
        return self.feeds.setdefault(key, Feed())

    def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        self.calls.append({"messages": messages, **options, "stop": stop})
        key = key_of(messages)
        if key in self.refused:
            raise self.refused[key]
        made = generator(self.feed(key)) if self._kind == KINDS[0] else Plain(self.feed(key))
        self._opened.append((key, made))  # kept, so that none is closed because nobody remembers it
        return made

    def is_open(self, key):
        """Whether an inner answer to that key has something left to do."""
        made, feed = [made for each, made in self._opened if each == key], self.feed(key)
        if self._kind == KINDS[0]:
            return feed.asked > 0 and any(each.ag_frame is not None for each in made)
        return bool(made) and not feed.closed


# in the room: the reader, and what happens


class Now:
    """The clock that an answer is given: it says what the timeline has set."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Reading:
    """One answer, as its reader sees it."""

    def __init__(self):
        self.thing = self.asking = None
        self.note = {"got": [], "end": None, "kept": False, "closed": None, "closing": None}
        self.given = []


class Play:
    """Plays a timeline on one MeasuredChat."""

    def __init__(self, answer, inside, kind, clock):
        self.inside, self.clock, self.inner = inside, clock, Inner(kind)
        self.registry = CollectorRegistry()
        self.measured = answer.MeasuredChat(self.inner, self.registry, clock=self.clock)
        self.readings, self.looks = {}, []

    async def play(self, timeline):
        for what, *arguments in timeline:
            await getattr(self, what)(*arguments)
        await turn()
        return {
            "readings": {key: reading.note for key, reading in self.readings.items()},
            "calls": self.inside.plain(self.inner.calls),
            "looks": self.looks,
            "figures": figures(self.registry),
        }

    async def until(self, holds):
        """Whether that comes to hold while the event loop goes round; no clock decides."""
        waits = self.inside.kept.setdefault("waits", [500])
        for number in range(TURNS + waits[0]):
            if holds():
                return True
            await asyncio.sleep(0 if number < TURNS else 0.002)
        waits[0] = 3  # the next that does not come is not waited for as long
        return False

    # what happens

    async def call(self, key, options=None):
        self.readings[key] = reading = Reading()
        try:
            reading.thing = self.measured.chat(user(key), **options or {})
        except Exception as error:  # noqa: BLE001 - the scripted one, or the answer's own
            reading.note["end"] = self.raised(error)

    async def asks(self, key):
        if key not in self.readings:
            await self.call(key)
        reading, feed = self.readings[key], self.inner.feed(key)
        if reading.thing is None or reading.note["end"]:
            return
        if reading.asking is None:
            reading.asking = asyncio.ensure_future(next_of(reading))
            await turn(10)  # a task has to begin before it can be cancelled
            await self.until(lambda: feed.asked > feed.given or reading.asking.done())

    async def gives(self, key, after, text, reason, tokens):
        await self.asks(key)
        self.clock.now += after
        await self.ready(key, text, reason, tokens)
        await self.receive(key)

    async def ready(self, key, text, reason, tokens):
        """The inner answer has an object ready, whether or not it is asked for."""
        reading, feed = self.readings[key], self.inner.feed(key)
        reading.given.append(ScriptedPiece(text, *tokens, reason))
        feed.given += 1
        feed.events.put_nowait(reading.given[-1])

    async def receive(self, key):
        """The reader takes an object that is ready."""
        await self.asks(key)
        reading = self.readings[key]
        if reading.asking is None:
            return
        if await self.until(reading.asking.done):
            self.take(reading)
        else:
            reading.note["kept"] = True

    async def fails(self, key, after, name):
        await self.asks(key)
        self.clock.now += after
        self.inner.feed(key).events.put_nowait(error_named(name))
        await self.read_on(key)

    async def refuses(self, key, name):
        self.inner.refused[key] = error_named(name)
        await self.asks(key)
        await self.read_on(key)

    async def ends(self, key, after):
        await self.asks(key)
        self.clock.now += after
        self.inner.feed(key).events.put_nowait(None)
        await self.read_on(key)

    async def read_on(self, key):
        """To the answer's end, which is there."""
        reading = self.readings[key]
        while not reading.note["end"]:
            await self.asks(key)
            if reading.asking is None or not await self.until(reading.asking.done):
                return
            self.take(reading)

    async def cancels(self, key, after):
        await self.asks(key)
        self.clock.now += after
        reading = self.readings[key]
        if reading.asking is None:
            return
        reading.asking.cancel()
        if await self.until(reading.asking.done):
            self.take(reading)

    async def closes(self, key, after):
        self.clock.now += after
        reading = self.readings[key]
        if not hasattr(reading.thing, "aclose"):
            return
        if reading.asking is not None:  # it was kept waiting
            reading.asking.cancel()
            await asyncio.wait([reading.asking])
            reading.asking = None
        closing = asyncio.ensure_future(reading.thing.aclose())
        done = await self.until(closing.done)
        # asked in the moment in which aclose() has returned
        reading.note["closed"] = done and not self.inner.is_open(key)
        if done and not closing.cancelled() and closing.exception():
            reading.note["closing"] = self.raised(closing.exception())
        reading.note["end"] = reading.note["end"] or "left"

    async def pause(self, seconds):
        self.clock.now += seconds

    async def look(self):
        await turn()
        self.looks.append(figures(self.registry))

    def take(self, reading):
        task, reading.asking = reading.asking, None
        if task.cancelled():
            reading.note["end"] = "cancelled"
        elif isinstance(task.exception(), StopAsyncIteration):
            reading.note["end"] = "end"
        elif task.exception():
            reading.note["end"] = self.raised(task.exception())
        else:
            found = [number for number, given in enumerate(reading.given) if given is task.result()]
            reading.note["got"] += found or [self.inside.plain(task.result())]

    def raised(self, error):
        described = self.inside.outcome(_raise, error)
        return {"raised": described["raised"][0], "message": described["message"], "where": described["where"]}


async def next_of(reading):
    # another form than the contract's is read as well: one test is about it
    if asyncio.iscoroutine(reading.thing):
        reading.thing = await reading.thing
    if not hasattr(reading.thing, "__anext__"):
        reading.thing = aiter(reading.thing)
    return await anext(reading.thing)


def _raise(error):
    raise error


def user(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


async def turn(rounds=TURNS):
    for _ in range(rounds):
        await asyncio.sleep(0)


def figures(registry):
    """What a scrape shows: {"kinds": {name: kind}, "samples": [[name, labels, value], ...]}."""
    kinds, samples = {}, []
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        kinds[family.name + "_total" * (family.type == "counter")] = family.type
        samples += [[each.name, dict(each.labels), each.value] for each in family.samples]
    return {"kinds": kinds, "samples": samples}


# in the room: scenes


async def play(answer, inside, kind, timeline, at=1000.0):
    return await Play(answer, inside, kind, Now(at)).play(timeline)


async def play_beside(answer, inside, kind, timeline, other):
    """Both timelines, each on a MeasuredChat with a registry of its own."""
    plays = [Play(answer, inside, kind, Now()) for _ in range(2)]
    return [await each.play(its) for each, its in zip(plays, (timeline, other))]


async def what_chat_returns(answer, inside):
    measured = answer.MeasuredChat(inner := Inner(KINDS[0]), CollectorRegistry(), clock=Now())
    thing = measured.chat(user("Hello"))
    has = [name for name in NEEDS if hasattr(thing, name)]
    if asyncio.iscoroutine(thing):
        thing.close()
    elif has == NEEDS:
        feed = inner.feed("Hello")
        for event in (ScriptedPiece("Hi", 1, 1), ScriptedPiece("", 1, 2, "stop"), None):
            feed.events.put_nowait(event)
        return {
            "type": type(thing).__name__,
            "has": has,
            "texts": [getattr(each, "text", each) async for each in thing],
        }
    return {"type": type(thing).__name__, "has": has, "texts": None}


async def with_its_own_clock(answer, inside):
    """The figures of an answer whose first text took 50 ms and a little, without a clock by script."""
    registry, reading = CollectorRegistry(), Reading()
    reading.thing = answer.MeasuredChat(inner := Inner(KINDS[0]), registry).chat(user("Hello"))
    asking = asyncio.ensure_future(next_of(reading))
    await turn()
    time.sleep(0.05)
    for event in (ScriptedPiece("Hi", 1, 1, "stop"), None):
        inner.feed("Hello").events.put_nowait(event)
    await asking
    with contextlib.suppress(StopAsyncIteration):
        await next_of(reading)
    return figures(registry)


# what the tests share


def gives(text="", after=0.0, reason=None, key="a", tokens=(7, 1)):
    return ["gives", key, after, text, reason, list(tokens)]


def ready(text="", reason=None, key="a", tokens=(7, 1)):
    return ["ready", key, text, reason, list(tokens)]


def ends(after=0.0, key="a"):
    return ["ends", key, after]


def fails(after=0.0, error="RuntimeError", key="a"):
    return ["fails", key, after, error]


def refuses(error="RuntimeError", key="a"):
    return ["refuses", key, error]


def closes(after=0.0, key="a"):
    return ["closes", key, after]


def cancels(after=0.0, key="a"):
    return ["cancels", key, after]


def whole(reason="stop", key="a"):
    """An answer that is read to its end."""
    return [gives("Hi", 0.5, key=key), gives("", 0.25, reason, key), ends(key=key)]


ENDS = {
    "read to the end": whole(),
    "the answer fails": [gives("Hi"), fails()],
    "the answer fails before its first object": [fails()],
    "the inner chat raises": [refuses()],
    "the reader calls aclose()": [gives("Hi"), closes()],
    "the reader is cancelled": [gives("Hi"), cancels()],
    "the reader is cancelled before the first object": [cancels()],
}


def in_words(timeline):
    """What happens, as a reader would tell it."""
    said = []
    for what, *rest in timeline:
        # whose it is matters only where there are several
        key = f"{rest[0]}: " if what not in ("pause", "look") and rest[0] != "a" else ""
        after = f" after {rest[1]:g} s" if what in ("gives", "ends", "fails", "closes", "cancels") and rest[1] else ""
        if what in ("gives", "ready"):
            text, reason = rest[-3:-1]
            happens = "is ready" if what == "ready" else "is yielded"
            said.append(f"{key}{text!r}{f' with {reason!r}' if reason else ''} {happens}{after}")
        elif what in ("fails", "refuses"):
            who = "the inner chat" if what == "refuses" else "the inner answer"
            said.append(f"{key}{who} raises {rest[-1]}{after}")
        elif what == "pause":
            said.append(f"{rest[0]:g} s pass")
        elif what in ("call", "asks", "ends", "closes", "cancels"):
            words = {"call": "chat() is called", "asks": "an object is asked for", "ends": "the inner answer ends"}
            words |= {"closes": "the reader calls aclose()", "cancels": "the reader is cancelled"}
            said.append(f"{key}{words[what]}{after}")
    return ", ".join(said)


class Found:
    """What a timeline left behind, as a test looks at it."""

    def __init__(self, timeline, result, figures=None):
        self.sent = in_words(timeline)
        self.readings, self.calls, self.looks = result["readings"], result["calls"], result["looks"]
        self.figures = figures or result["figures"]

    def at(self, look):
        """The same at that `look`."""
        return Found([], {"readings": {}, "calls": [], "looks": []}, self.looks[look]).about(self.sent)

    def about(self, sent):
        self.sent = sent
        return self

    def values(self, name):
        """[(labels, value), ...] of a sample's name."""
        return [(labels, value) for each, labels, value in self.figures["samples"] if each == name]

    def value(self, name):
        """The sample of that name and no labels.

        Raises:
            Mistake: there is none.
        """
        found = [value for labels, value in self.values(name) if not labels]
        if not found:
            self.require_metric(name)
            fail(f"{name} does not have the contract's labels", expected="no labels", got=shown(self.values(name)))
        return found[0]

    def require_metric(self, name):
        metric = next((each for each in METRICS if name.startswith(each)), name)
        if metric not in self.figures["kinds"]:
            names = ", ".join(each for each in self.figures["kinds"] if not each.endswith("_created"))
            fail(
                f"there is no {metric} in the registry that MeasuredChat was given",
                expected="a metric of that name",
                got=names or "none at all",
            )

    def require(self, name, expected, mistake):
        value = self.value(name)
        require(
            abs(value - expected) < 1e-6,
            mistake,
            sent=self.sent,
            expected=f"{name} {expected:g}",
            got=f"{value:g}",
        )

    def outcomes(self):
        """{outcome: how many}; what is 0 is left out.

        Raises:
            Mistake: there is no such metric.
        """
        self.require_metric(REQUESTS)
        return {labels.get("outcome", "(no label)"): value for labels, value in self.values(REQUESTS) if value}

    def require_outcomes(self, expected, mistake):
        found = self.outcomes()
        require(
            found == expected,
            mistake,
            sent=self.sent,
            expected=requests_of(expected),
            got=requests_of(found),
        )


def requests_of(outcomes):
    if not outcomes:
        return f"{REQUESTS} 0"
    return ", ".join(f'{REQUESTS}{{outcome="{outcome}"}} {value:g}' for outcome, value in sorted(outcomes.items()))


def shown(values):
    return ", ".join(f"{labels or 'no labels'}: {value:g}" for labels, value in values) or "nothing"


def played(room, *timeline, at=1000.0):
    """What each kind of inner answer leaves behind: two Founds. `at` is what the clock says at first."""
    return [Found(timeline, playing(room, play, kind, timeline=list(timeline), at=at)) for kind in KINDS]


def playing(room, scene, kind, **arguments):
    """A scene's result.

    Raises:
        Mistake: MeasuredChat cannot be made twice, or something else raises.
    """
    try:
        return room.play(scene, kind=kind, **arguments)
    except Raised as raised:
        if "Duplicated timeseries" in raised.error["message"]:
            fail(
                "the metrics are created in a shared registry: a second MeasuredChat fails",
                sent="two MeasuredChats, each with its own registry",
                got=raised.error["said"],
                where=raised.error["where"],
            )
        raise


def end_of(found, key="a"):
    """How the reader's reading ended, in words."""
    end = found.readings[key]["end"]
    if isinstance(end, dict):
        return f"{end['raised']}: {end['message']}"
    words = {"end": "the end", "left": "the reader has left", "cancelled": "CancelledError"}
    return words.get(end, "nothing: it keeps waiting")


# the tests: what passes through


def test_what_chat_returns_can_be_read_and_closed(shared_room):
    found = shared_room.play(what_chat_returns)
    what_comes_is_an_async_iterator(found, "chat", "chat(messages)", NEEDS)
    require(
        found["texts"] == ["Hi", ""],
        "`async for` does not read the inner answer's objects",
        sent="async for piece in chat(messages)",
        expected="'Hi', ''",
        got=", ".join(map(repr, found["texts"])),
    )


def test_the_arguments_reach_the_inner_chat(shared_room):
    defaults = {"max_tokens": None, "temperature": 1.0, "top_p": 1.0, "seed": None, "stop": []}
    for options in (
        {},
        {"max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["\n", "END"]},
        {"temperature": 0, "seed": 0, "max_tokens": 1},
        {"max_tokens": None, "temperature": None, "top_p": None, "seed": None},
    ):
        for found in played(shared_room, ["call", "a", options], *whole()):
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
            expected = {"messages": messages, **defaults, **options}
            sent = "chat(messages" + "".join(f", {name}={value!r}" for name, value in options.items()) + ")"
            end = found.readings["a"]["end"]
            if isinstance(end, dict) and end["raised"] == "TypeError":
                mistake = "chat, or its call to the inner chat, does not have the same arguments as in exercise 3.6"
                fail(mistake, sent=sent, expected="chat accepts each option", got=end_of(found), where=end["where"])
            require(
                len(found.calls) == 1,
                "the inner chat is not called exactly once for each answer",
                sent=sent,
                expected="one call",
                got=str(len(found.calls)),
            )
            [came] = found.calls
            wrong = [name for name in expected if came[name] != expected[name]]
            require(
                not wrong,
                "the inner chat does not get the arguments of the call",
                sent=sent,
                expected=", ".join(f"{name}={expected[name]!r}" for name in wrong),
                got=", ".join(f"{name}={came[name]!r}" for name in wrong),
            )


def test_the_objects_are_the_inner_answers_own(shared_room):
    timeline = [gives(), gives("Hi"), gives(" there"), gives(), gives("!"), gives("", 0, "stop"), ends()]
    for found in played(shared_room, *timeline):
        got, end = found.readings["a"]["got"], found.readings["a"]["end"]
        if isinstance(end, dict):
            mistake = f"reading the answer raises {end['raised']}"
            fail(mistake, sent=found.sent, expected="each object, then the end", got=end_of(found), where=end["where"])
        others = [each for each in got if not isinstance(each, int)]
        require(
            not others,
            "the reader does not get the inner answer's own objects",
            sent=found.sent,
            expected="the very same objects",
            got=str(others[:1] and others[0]),
        )
        require(
            got == list(range(6)),
            "the reader does not get each object once, in order",
            sent=found.sent,
            expected="6 objects",
            got=f"of the objects numbered 0 to 5: {', '.join(map(str, got)) or 'none'}",
        )
        require(
            end == "end",
            "the answer never ends",
            sent=found.sent,
            expected="the end after the last object",
            got=end_of(found),
        )


def test_each_object_comes_as_soon_as_it_is_there(shared_room):
    for found in played(shared_room, gives("Hi"), gives(" there"), gives("", 0, "stop"), ends()):
        require(
            found.readings["a"]["kept"] is False,
            "an object is held back until the inner answer goes on",
            sent=found.sent,
            expected="each object as soon as the inner answer has yielded it",
            got="the reader waits, although there is an object",
        )


def test_an_error_reaches_the_reader(shared_room):
    for end in (fails, refuses):
        for before in ([], [gives("Hi")]) if end is fails else ([],):
            for error in ERRORS:
                for found in played(shared_room, *before, end(error=error)):
                    raised = found.readings["a"]["end"]
                    message = "the model fails (7)" if error == "ModelError" else "the model fails"
                    came = isinstance(raised, dict) and raised["raised"] == error and raised["message"] == message
                    require(
                        came,
                        "an error in the inner chat does not reach the reader unchanged",
                        sent=found.sent,
                        expected=f"{error}: {message}",
                        got=end_of(found),
                        where=raised["where"] if isinstance(raised, dict) else None,
                    )


def test_a_cancelled_reader_gets_the_cancellation(shared_room):
    for before in ([], [gives("Hi")]):
        for found in played(shared_room, *before, cancels()):
            require(
                found.readings["a"]["end"] == "cancelled",
                "the CancelledError does not reach the reader",
                sent=found.sent,
                expected="CancelledError",
                got=end_of(found),
            )


def test_the_inner_answer_is_closed(shared_room):
    for timeline in (
        [gives("Hi"), closes()],
        [gives("Hi"), gives("", 0, "stop"), closes()],
        [gives("Hi"), cancels(), closes()],
        [*whole(), closes()],
        [gives("Hi"), fails(), closes()],
    ):
        require_closed(played(shared_room, *timeline))


def test_an_answer_that_nobody_read_is_closed(shared_room):
    require_closed(played(shared_room, ["call", "a"], closes()))


def require_closed(founds):
    for kind, found in zip(KINDS, founds):
        reading = found.readings["a"]
        raised = reading["closing"] or {"raised": "", "message": "", "where": None}
        require(
            reading["closing"] is None,
            "aclose() raises an error",
            sent=f"{found.sent}; the inner answer is {kind}",
            expected="aclose() returns",
            got=f"{raised['raised']}: {raised['message']}",
            where=raised["where"],
        )
        require(
            reading["closed"] is not False,
            "the inner answer is not closed when aclose() returns",
            sent=f"{found.sent}; the inner answer is {kind}",
            expected="its own aclose() has been called, and has returned",
            got="it is still open",
        )


# the tests: outcomes


def test_the_finish_reason_is_the_outcome(shared_room):
    for reason in ("stop", "length"):
        for found in played(shared_room, *whole(reason)):
            found.require_outcomes({reason: 1}, f"an answer that ends with {reason!r} is not counted under that reason")
        for found in played(shared_room, gives("Hi"), gives(" there", 0, reason), ends()):
            found.require_outcomes({reason: 1}, f"an answer whose last object has text is not counted as {reason!r}")


def test_an_error_in_the_answer_is_an_outcome(shared_room):
    for before in ([], [gives("Hi")]):
        for error in ERRORS:
            for found in played(shared_room, *before, fails(error=error)):
                found.require_outcomes({"error": 1}, "an answer that fails is not counted as an error")


def test_an_error_that_the_inner_chat_raises_is_an_outcome(shared_room):
    for error in ERRORS:
        for found in played(shared_room, refuses(error)):
            found.require_outcomes(
                {"error": 1}, "an error that the inner chat itself raises is not counted as an error"
            )


def test_a_reader_who_closes_is_cancelled(shared_room):
    for texts in (["Hi"], ["Hi", " there"], [""]):
        for found in played(shared_room, *map(gives, texts), closes()):
            found.require_outcomes({"cancelled": 1}, "a reader who calls aclose() is not counted as cancelled")


def test_a_cancelled_reader_is_cancelled(shared_room):
    for before in ([], [gives("Hi")]):
        for found in played(shared_room, *before, cancels()):
            found.require_outcomes({"cancelled": 1}, "a reader who is cancelled is not counted as cancelled")


def test_who_leaves_after_the_finish_reason_is_not_cancelled(shared_room):
    for reason in ("stop", "length"):
        for leaves in (closes(), cancels()):
            for found in played(shared_room, gives("Hi"), gives("", 0, reason), leaves):
                found.require_outcomes(
                    {reason: 1},
                    "a reader who leaves after the object with the finish_reason is not counted under that reason",
                )


def test_each_answer_counts_once(shared_room):
    for what, timeline in ENDS.items():
        for found in played(shared_room, *timeline, closes(), closes()):
            requests, seconds = sum(found.outcomes().values()), found.value(f"{WHOLE}_count")
            require(
                max(requests, seconds) <= 1,  # whether it counts at all is other tests' concern
                "an answer is counted more than once",
                sent=f"{found.sent} ({what}, then aclose() twice)",
                expected=f"{REQUESTS} 1 in all, {WHOLE}_count 1",
                got=f"{REQUESTS} {requests:g} in all, {WHOLE}_count {seconds:g}",
            )


def test_an_answer_that_nobody_read_counts_nowhere(shared_room):
    for found in played(shared_room, ["call", "a"], closes(1.0)):
        found.require_outcomes({}, "an answer that no one ever started to read is counted")
        require_nothing(found, "an answer that no one ever started to read is counted")


def require_nothing(found, mistake):
    for name in (IN_FLIGHT, PROMPT, COMPLETION, f"{FIRST}_count", f"{BETWEEN}_count", f"{WHOLE}_count"):
        found.require(name, 0, mistake)


# the tests: tokens


def test_the_tokens_are_those_of_the_last_object(shared_room):
    timeline = [
        gives("Hi", tokens=(0, 1)),
        gives(" there", tokens=(20, 3)),
        gives("", 0, "stop", tokens=(20, 5)),
        ends(),
    ]
    for found in played(shared_room, *timeline):
        found.sent += "; the objects say 1, 3 and 5 completion_tokens, and 0, 20 and 20 prompt_tokens"
        found.require(COMPLETION, 5, "the number of completion tokens is not what the last object says")
        found.require(PROMPT, 20, "the number of prompt tokens is not what the last object says")
    for found in played(shared_room, gives("", 0, "stop", tokens=(20, 1)), ends()):
        found.sent += "; the object says completion_tokens=1 and prompt_tokens=20"
        found.require(COMPLETION, 1, "the completion tokens of an answer without text are not counted")
        found.require(PROMPT, 20, "the prompt tokens of an answer without text are not counted")


def test_the_tokens_of_answers_add_up(shared_room):
    timeline = []
    for number, key in enumerate("abc"):
        timeline += [gives("Hi", key=key, tokens=(10 + number, 1))]
        timeline += [gives("", 0, "length", key, tokens=(10 + number, 4 + number)), ends(key=key)]
    for found in played(shared_room, *timeline):
        found.sent += (
            "; the last objects of the three answers say 4, 5 and 6 completion_tokens, and 10, 11 and 12 prompt_tokens"
        )
        found.require(COMPLETION, 15, "the completion tokens of several answers do not add up")
        found.require(PROMPT, 33, "the prompt tokens of several answers do not add up")


def test_the_tokens_count_whatever_the_outcome(shared_room):
    before = [gives("Hi", tokens=(20, 2)), gives(" there", tokens=(20, 4))]
    for what, leaves in {
        "fails": [fails()],
        "is abandoned with aclose()": [closes()],
        "is abandoned because its reader is cancelled": [cancels()],
    }.items():
        for found in played(shared_room, *before, *leaves):
            found.sent += "; the last object says 20 prompt_tokens and 4 completion_tokens"
            found.require(COMPLETION, 4, f"the completion tokens of an answer that {what} are not counted")
            found.require(PROMPT, 20, f"the prompt tokens of an answer that {what} are not counted")
    # the last object has no text; then no object has
    without = [gives("Hi", tokens=(20, 2)), gives("", tokens=(20, 5))], [gives("", tokens=(20, 5))]
    for timeline in [[*begun, end] for begun in without for end in (fails(), closes(), cancels())]:
        for found in played(shared_room, *timeline):
            found.sent += "; the last object says 5 completion_tokens and 20 prompt_tokens, and has no text"
            found.require(COMPLETION, 5, "the completion tokens of an object without text are not counted")
            found.require(PROMPT, 20, "the prompt tokens of an object without text are not counted")
    for end in (fails(), refuses(), cancels()):
        for found in played(shared_room, end):
            found.require(COMPLETION, 0, "completion tokens are counted although no object arrived")
            found.require(PROMPT, 0, "prompt tokens are counted although no object arrived")


# the tests: the gauge


def test_in_flight_is_how_many_are_being_read(shared_room):
    look = ["look"]
    timeline = [["asks", "one"], look, gives("Hi", key="one"), look, gives("Hi", key="two"), look]
    for key in ("one", "two"):
        timeline += [gives("", 0, "stop", key), ends(key=key), look]
    for found in played(shared_room, *timeline):
        for number, expected in enumerate((1, 1, 2, 1, 0)):
            found.at(number).require(IN_FLIGHT, expected, "the gauge is not the number of answers being read")


def test_in_flight_goes_back_to_0(shared_room):
    for what, timeline in ENDS.items():
        for found in played(shared_room, *timeline):
            value = found.value(IN_FLIGHT)
            require(
                value <= 0,
                f"the gauge does not go down when {what}".replace("when read", "when an answer is read"),
                sent=found.sent,
                expected=f"{IN_FLIGHT} 0",
                got=f"{value:g}",
            )
            found.require(IN_FLIGHT, 0, "the gauge goes down more than once for an answer")
        for found in played(shared_room, *timeline, closes()):
            found.require(IN_FLIGHT, 0, "the gauge goes down more than once for an answer, or not at all")


# the tests: times


def test_only_the_given_clock_is_read(shared_room):
    timeline = [gives("Hi"), gives(" there"), gives("", 0, "stop"), ends()]
    for found in played(shared_room, *timeline):
        for name in (FIRST, BETWEEN, WHOLE):
            found.require(f"{name}_sum", 0, "the clock that is read is not the one that MeasuredChat was given")


def test_times_are_in_seconds(shared_room):
    for found in played(shared_room, gives("Hi", 0.5), gives(" there", 1.0), gives("", 2.0, "stop"), ends()):
        for name, seconds in ((FIRST, 0.5), (BETWEEN, 1.0), (WHOLE, 3.5)):
            value = found.value(f"{name}_sum")
            for unit, factor in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
                require(
                    abs(value / factor - seconds) > 1e-6,
                    f"times are measured in {unit}, not in seconds",
                    sent=found.sent,
                    expected=f"{name}_sum {seconds:g}",
                    got=f"{value:g}",
                )


def test_time_to_first_token(shared_room):
    until_first = 0.5 + 2**-11  # so that what is rounded to milliseconds is seen
    timeline = [["pause", 8.0], gives("Hi", until_first), gives(" there", 4.0), gives("", 2.0, "stop"), ends()]
    for found in played(shared_room, *timeline):
        found.require(f"{FIRST}_count", 1, "time to first token is not observed exactly once for an answer")
        found.require(
            f"{FIRST}_sum", until_first, "time to first token is not the time from the call to the first text"
        )


def test_times_count_whatever_the_outcome(shared_room):
    for what, leaves in {
        "fails": fails(4.0),
        "is abandoned with aclose()": closes(4.0),
        "is abandoned because its reader is cancelled": cancels(4.0),
    }.items():
        for found in played(shared_room, gives("Hi", 0.5), gives(" there", 1.0), leaves):
            found.require(f"{FIRST}_count", 1, f"no time to first token is observed for an answer that {what}")
            found.require(f"{BETWEEN}_count", 1, f"no inter-token latency is observed for an answer that {what}")
            found.require(f"{FIRST}_sum", 0.5, f"the time to first token of an answer that {what} is wrong")


def test_time_to_first_token_waits_for_text(shared_room):
    for found in played(shared_room, gives("", 0.5), gives("", 1.0), gives("Hi", 2.0), gives("", 4.0, "stop"), ends()):
        found.require(f"{FIRST}_count", 1, "time to first token is not observed exactly once for an answer")
        found.require(f"{FIRST}_sum", 3.5, "time to first token ends at an object without text")
    for end in ([gives("", 1.0, "length"), ends()], [fails(1.0)], [refuses()], [cancels(1.0)]):
        for found in played(shared_room, gives("", 1.0) if end[0][0] != "refuses" else ["pause", 1.0], *end):
            found.require(f"{FIRST}_count", 0, "time to first token is observed although no text arrived")
            found.require(f"{BETWEEN}_count", 0, "inter-token latency is observed although no text arrived")


def test_the_last_object_may_have_the_first_text(shared_room):
    for found in played(shared_room, gives("Hi", 2.0, "length"), ends()):
        found.require(f"{FIRST}_count", 1, "text in an answer's last object is not counted as a first token")
        found.require(f"{FIRST}_sum", 2.0, "text in an answer's last object is not counted as a first token")
        found.require(
            f"{BETWEEN}_count", 0, "inter-token latency is observed for an answer with text in only one object"
        )


def test_a_text_of_blanks_is_a_text(shared_room):
    mistake = "text that is only whitespace is not treated as text"
    for found in played(shared_room, gives(" ", 0.5), gives("\n", 1.0), gives("Hi", 2.0, "stop"), ends()):
        found.require(f"{BETWEEN}_count", 2, mistake)


def test_a_time_of_0_is_a_time(shared_room):
    mistake = "a time of 0.0 is treated as missing"
    for before in (0.0, 0.5):
        timeline = [gives("Hi", before), gives(" there", 2.0), gives("!", 4.0, "stop"), ends()]
        for found in played(shared_room, *timeline, at=-before):
            found.sent += "; the clock reads 0.0 when the first text arrives"
            found.require(f"{BETWEEN}_count", 2, mistake)
    timeline = [gives("Hi", 0.5), gives(" there", 2.0), gives("!", 4.0, "stop"), ends()]
    begun_at_0, usual = played(shared_room, *timeline, at=0.0), played(shared_room, *timeline)
    for found, other in zip(begun_at_0, usual, strict=True):
        found.sent += "; the clock reads 0.0 when `chat` is called"
        require_alike(found, other, (f"{FIRST}_sum", f"{WHOLE}_sum", IN_FLIGHT), mistake)
    # a coarse clock says the same twice
    at_once = played(shared_room, gives("Hi"), gives(" there"), gives("!", 0, "stop"), ends())
    for found, other in zip(at_once, usual, strict=True):
        names = [f"{name}_count" for name in (FIRST, BETWEEN, WHOLE)]
        require_alike(found, other, names, "a time of 0.0 between two readings is treated as missing")


def require_alike(found, other, names, mistake):
    """Requires the figures of another timeline: whether those are right is other tests' concern."""
    for name in names:
        got, expected = (sum(value for _, value in each.values(name)) for each in (found, other))
        # a clock of its own is another test's concern, too
        require(abs(got - expected) < 0.25, mistake, sent=found.sent, expected=f"{name} {expected:g}", got=f"{got:g}")


def test_inter_token_latency(shared_room):
    gaps = (2**-11, 3.0, 6.0)  # the first is below the lowest edge that there has to be
    timeline = [gives("Hi", 0.5), *(gives(" there", gap) for gap in gaps), gives("", 0, "stop"), ends()]
    for found in played(shared_room, *timeline):
        found.require(f"{BETWEEN}_count", 3, "inter-token latency is not observed from each text to the next")
        found.require(f"{BETWEEN}_sum", sum(gaps), "inter-token latency is not the time from each text to the next")
        for labels, value in found.values(f"{BETWEEN}_bucket"):
            edge = float(labels["le"])
            if all(abs(gap - edge) > 1e-6 for gap in gaps):
                require(
                    value == sum(gap < edge for gap in gaps),
                    "inter-token latency is not observed separately for each interval between texts",
                    sent=found.sent,
                    expected=f"intervals of up to {edge:g} s: {sum(gap < edge for gap in gaps)}",
                    got=f"{value:g}",
                )


def test_inter_token_latency_skips_objects_without_text(shared_room):
    timeline = [gives("", 0.5), gives("Hi", 0.5), gives("", 1.0), gives(" there", 2.0), gives("", 4.0, "stop"), ends()]
    for found in played(shared_room, *timeline):
        found.require(f"{BETWEEN}_count", 1, "inter-token latency is observed for objects without text")
        found.require(f"{BETWEEN}_sum", 3.0, "inter-token latency begins or ends at an object without text")


def test_a_slow_readers_time_counts(shared_room):
    for found in played(shared_room, gives("Hi"), ["pause", 4.0], gives(" there", 0.5), gives("", 0, "stop"), ends()):
        found.require(f"{BETWEEN}_sum", 4.5, "the time that a slow reader takes is left out of the inter-token latency")
        found.require(f"{WHOLE}_sum", 4.5, "the time that a slow reader takes is left out of the request's duration")
    # both objects are there before the reader asks: the time of an object is when it is handed out
    timeline = [["asks", "a"], ready("Hi"), ready(" there"), ["receive", "a"], ["pause", 4.0], ["receive", "a"]]
    for found in played(shared_room, *timeline, gives("", 0, "stop"), ends()):
        found.require(f"{BETWEEN}_sum", 4.0, "an object's time is not the time at which it is handed to the reader")


def test_request_seconds(shared_room):
    for found in played(shared_room, ["pause", 8.0], gives("Hi", 0.5), gives("", 1.0 + 2**-11, "stop"), ends()):
        found.require(f"{WHOLE}_count", 1, "a request's duration is not observed exactly once for an answer")
        found.require(f"{WHOLE}_sum", 1.5 + 2**-11, "a request's duration does not run from the call to the end")


def test_request_seconds_count_whatever_the_outcome(shared_room):
    for what, timeline in {
        "fails": [gives("Hi", 0.5), fails(4.0)],
        "fails before its first object": [fails(4.5)],
        "is abandoned with aclose()": [gives("Hi", 0.5), closes(4.0)],
        "is abandoned because its reader is cancelled": [gives("Hi", 0.5), cancels(4.0)],
        "is abandoned before its first object": [cancels(4.5)],
    }.items():
        for found in played(shared_room, *timeline):
            found.require(f"{WHOLE}_count", 1, f"no duration is observed for an answer that {what}")
            found.require(f"{WHOLE}_sum", 4.5, f"the duration of an answer that {what} does not run to its end")
    for found in played(shared_room, refuses()):
        found.require(f"{WHOLE}_count", 1, "no duration is observed for a request whose chat raises")


def test_without_a_clock_it_is_perf_counter(shared_room):
    figures = shared_room.play(with_its_own_clock)
    found = Found([], {"readings": {}, "calls": [], "looks": [], "figures": figures})
    value = found.value(f"{FIRST}_sum")
    require(
        0.045 <= value <= 15.0,
        "without `clock=`, the times are not those of time.perf_counter, in seconds",
        sent="MeasuredChat(chat_model, registry), and a first text after 50 ms or a little more",
        expected=f"{FIRST}_sum of at least 0.05",
        got=f"{value:g}",
    )


# the tests: the metrics themselves


def test_the_metrics_are_of_their_kinds(shared_room):
    for found in played(shared_room, *whole()):
        for name, kind in METRICS.items():
            found.require_metric(name)
            is_a = found.figures["kinds"][name]
            require(is_a == kind, f"{name} is not a {kind}", expected=f"a {kind}", got=f"a {is_a}")


def test_the_buckets_reach_from_1_ms_to_10_s(shared_room):
    for found in played(shared_room, *whole()):
        for name in (FIRST, BETWEEN, WHOLE):
            found.require_metric(name)
            edges = sorted({float(labels["le"]) for labels, _ in found.values(f"{name}_bucket")} - {float("inf")})
            for low, high, mistake in (
                (0.001, 0.002, "a histogram has no bucket boundary between 1 ms and 2 ms"),
                (10.0, 30.0, "a histogram has no bucket boundary between 10 s and 30 s"),
            ):
                require(
                    any(low <= edge < high for edge in edges),
                    mistake,
                    sent=name,
                    expected=f"a boundary in [{low:g}, {high:g}) seconds",
                    got=", ".join(f"{edge:g}" for edge in edges),
                )


def test_there_is_no_label_but_outcome(shared_room):
    timeline = [*whole("stop", "one"), *whole("length", "two"), gives("Hi", key="three"), fails(key="three")]
    for found in played(shared_room, *timeline, gives("Hi", key="four"), closes(key="four")):
        for name, labels, _ in found.figures["samples"]:
            allowed = {"outcome"} if name.startswith("llm_requests") else {"le"} if name.endswith("_bucket") else set()
            others = set(labels) - allowed
            require(
                not others,
                "a metric has a label other than outcome",
                sent=name,
                expected="only the label outcome, on llm_requests_total:"
                " each value of a label is one more time series to store",
                got=", ".join(sorted(others)),
            )
            outcome = labels.get("outcome")
            require(
                outcome in (None, *OUTCOMES),
                "an outcome label has a value that is not one of the four",
                sent=f'{name}{{outcome="{outcome}"}}',
                expected=", ".join(OUTCOMES),
                got=str(outcome),
            )


def test_two_registries_do_not_share(shared_room):
    timelines = whole(), [*whole("length"), *whole("length", "b")]
    for kind in KINDS:
        alone = [playing(shared_room, play, kind, timeline=timeline) for timeline in timelines]
        beside = playing(shared_room, play_beside, kind, timeline=timelines[0], other=timelines[1])
        for timeline, one, other in zip(timelines, alone, beside):
            found = Found(timeline, other)
            for name in METRICS:
                found.require_metric(name)
            one, other = of_answers(one), of_answers(other)
            different = next((name for name in one if one[name] != other.get(name)), None)
            require(
                one == other,
                "two MeasuredChats with separate registries share metrics",
                sent=f"{found.sent}; and other answers through another MeasuredChat",
                expected=f"{different} {one.get(different)}, the same as without the other MeasuredChat",
                got=f"{other.get(different)}",
            )


def of_answers(result):
    """{name and labels: value} of what a scene's figures count; times are another test's concern."""
    samples = result["figures"]["samples"]
    return {f"{name}{labels or ''}": value for name, labels, value in samples if name.endswith(COUNTS)}


# the tests: several at once


def test_answers_at_once_do_not_mix(shared_room):
    timeline = [["asks", "one"], ["pause", 1.0], ["asks", "two"]]
    # one: its first text after 3 s, then 7 s. two: after 4 s, then 4 s
    timeline += [gives("Hi", 2.0, key="one", tokens=(10, 1)), gives("Ho", 2.0, key="two", tokens=(20, 2))]
    timeline += [gives("Ha", 4.0, key="two", tokens=(20, 4)), gives("He", 1.0, key="one", tokens=(10, 3))]
    timeline += [gives("", 1.0, "stop", "one", (10, 3)), gives("", 0, "length", "two", (20, 4))]
    timeline += [ends(key="one"), ends(key="two")]
    for found in played(shared_room, *timeline):
        require_no_waiting(found)
        mistake = (
            "concurrent answers get mixed up: some of their data is stored in a place that they all share (in self?)"
        )
        found.require_outcomes({"stop": 1, "length": 1}, mistake)
        found.require(COMPLETION, 7, mistake)
        found.require(PROMPT, 30, mistake)
        found.require(f"{FIRST}_count", 2, mistake)
        found.require(f"{FIRST}_sum", 7.0, mistake)
        found.require(f"{BETWEEN}_count", 2, mistake)
        found.require(f"{BETWEEN}_sum", 11.0, mistake)
        found.require(f"{WHOLE}_count", 2, mistake)
        found.require(f"{WHOLE}_sum", 11.0 + 10.0, mistake)


def require_no_waiting(found):
    kept = sum(reading["kept"] for reading in found.readings.values())
    require(
        kept == 0,
        "answers wait for each other",
        sent=found.sent,
        expected="each object as soon as its inner answer has yielded it",
        got=f"{kept} readers wait, although there is an object for each",
    )


def test_64_at_once_are_counted(shared_room):
    keys = [f"{number}" for number in range(MANY)]
    timeline = [["asks", key] for key in keys]
    timeline += [gives("Hi", key=key, tokens=(10, 2)) for key in keys]
    timeline += [["look"]]
    for key in keys:
        timeline += [gives("", 0, "stop", key, (10, 3)), ends(key=key)]
    for found in played(shared_room, *timeline):
        found.sent = f"{MANY} answers at once"
        require_no_waiting(found)
        found.at(0).require(IN_FLIGHT, MANY, "the gauge is not the number of answers being read")
        found.require_outcomes({"stop": MANY}, f"{MANY} concurrent answers are not all counted")
        found.require(COMPLETION, 3 * MANY, f"the tokens of {MANY} concurrent answers are not all counted")
        found.require(f"{FIRST}_count", MANY, f"the first tokens of {MANY} concurrent answers are not all counted")
        found.require(IN_FLIGHT, 0, f"the gauge is not back at 0 after {MANY} concurrent answers")
