"""3.3: what registering, starting, answering and stopping call of the registered classes, and when.

The classes note it. An app's start-up and shutdown are driven by the messages of the lifespan protocol;
requests go over a real socket; start_app runs in a process of its own, `services/service.py`.

Not covered: Windows, where a process cannot be sent SIGINT alone.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import json
import os
import signal
import time
from pathlib import Path

import httpx
import psutil

from course.grading.kit.http import Http
from course.grading.kit.processes import Program, free_port, runs, start_python
from course.grading.kit.sse import Stream, has_address
from course.grading.mistakes import fail, require
from course.manifest import ROOT

START_LIMIT_S = 60.0
SERVICE = Path(__file__).parent / "services" / "service.py"
HOST = "127.0.0.2" if has_address("127.0.0.2") else "0.0.0.0"
"""Where start_app is to listen: somewhere else than by default."""

NUMBERS = itertools.count()


# in the room


class Broken(Exception):
    """An error that is like none of Python's."""


def new(path):
    """A path that no scene has registered before."""
    return f"{path}-{next(NUMBERS)}"


def fresh(answer, inside):
    """The events of the scene, which begin here; whatever an earlier scene left registered is gone."""
    with contextlib.suppress(Exception):
        answer.create_app()
    events = inside.notes["events"] = []
    return events


def config_class(events, name="Config", way="def", failing=(), base=None):
    """A config class that notes what is done with it; `failing` names the actions that raise."""
    from four_actions import ConfigHandler

    def done(self, what):
        events.append(f"{name} {what}")
        if what in failing:
            raise Broken(f"{name} cannot be {what}")

    def made(self):
        done(self, "made")
        self.label = name

    def initialize(self):
        done(self, "initialized")
        self.ready = True

    def close(self):
        done(self, "closed")

    async def async_initialize(self):
        await asyncio.sleep(0)
        initialize(self)

    async def async_close(self):
        await asyncio.sleep(0)
        close(self)

    methods = {"__init__": made, "initialize": initialize, "close": close}
    if way == "async def":
        methods |= {"initialize": async_initialize, "close": async_close}
    return type(name, (base or ConfigHandler,), methods)


def handler_class(events, run=None, name="Handler"):
    """A handler class that notes that one of it is made, and what pre_process gets."""
    from four_actions import RequestHandler

    class Handler(RequestHandler):
        def __init__(self, config):
            super().__init__(config)
            events.append(f"{name} made")

        def pre_process(self, request_body):
            events.append(f"{name} pre_process")
            return request_body

    Handler.run = run or (lambda self, processed_input: {"config": getattr(self.config, "label", None)})
    Handler.__name__ = name
    return Handler


class Lifespan:
    """A server's part of the lifespan protocol, by hand."""

    def __init__(self, app):
        self.app, self.asked, self.answered = app, asyncio.Queue(), asyncio.Queue()

    async def start(self):
        """ "complete", or "failed" and why."""
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self.task = asyncio.ensure_future(self.app(scope, self.asked.get, self.answered.put))
        return await self._say("startup")

    async def stop(self):
        return await self._say("shutdown")

    async def _say(self, what):
        self.asked.put_nowait({"type": f"lifespan.{what}"})
        got = asyncio.ensure_future(self.answered.get())
        await asyncio.wait([self.task, got], return_when=asyncio.FIRST_COMPLETED)
        if got.done():
            return got.result()["type"].removeprefix(f"lifespan.{what}.")
        return "failed"


def registering(answer, inside):
    """What registering and making the app call."""
    events = fresh(answer, inside)
    config = config_class(events)
    answer.HandlerFactory.register_handler(new("/one"), config, handler_class(events))
    answer.HandlerFactory.register_handler(new("/two"), config, handler_class(events))
    registered = list(events)
    app = answer.create_app()
    kind = [each.__name__ for each in type(app).__mro__]
    return {"registered": registered, "created": events[len(registered) :], "fastapi": "FastAPI" in kind}


async def answered(app, paths):
    """Those of the paths at which the app answers a POST with something else than 404."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return [path for path in paths if (await client.post(path, json=1)).status_code != 404]


async def refused(answer, inside, case):
    """What comes of a wrong registration, and whether the path can be registered and served afterwards."""
    events = fresh(answer, inside)
    Config, Handler = config_class(events), handler_class(events)
    register = answer.HandlerFactory.register_handler
    path, twice = new("/path"), new("/twice")

    class Stranger:
        def __repr__(self):
            return "<the stranger>"

    wrong = {
        "no slash": ("chat", Config, Handler),
        "an empty path": ("", Config, Handler),
        "twice": (twice, Config, Handler),
        "a config class of another kind": (path, Stranger, Handler),
        "a handler class of another kind": (path, Config, Stranger),
        "both the wrong way round": (path, Handler, Config),
        "an instance as the config class": (path, Config(), Handler),
        "an object as the config class": (path, Stranger(), Handler),
        "an object as the handler class": (path, Config, Stranger()),
        "None as the handler class": (path, Config, None),
        "a function as the config class": (path, print, Handler),
    }[case]
    if case == "twice":
        register(twice, Config, Handler)
    told = inside.outcome(register, *wrong)
    after = inside.outcome(register, path, Config, Handler)
    found = [] if "raised" in after else await answered(answer.create_app(), ["/chat", twice, path])
    return {"told": told, "after": after, "paths": [each.partition("-")[0] for each in found], "twice": twice}


async def second_apps(answer, inside):
    """What comes of create_app with nothing registered, and of a path that is registered again."""
    events = fresh(answer, inside)
    register = answer.HandlerFactory.register_handler
    one, two = new("/one"), new("/two")
    empty = inside.outcome(answer.create_app)
    register(one, config_class(events), handler_class(events))
    first = answer.create_app()
    left = []
    with contextlib.suppress(Exception):  # that it is a ValueError has a test
        left = await answered(answer.create_app(), [one])
    registered = inside.outcome(register, one, config_class(events), handler_class(events))
    register(two, config_class(events), handler_class(events))
    second = answer.create_app()

    return {
        "empty": empty,
        "left": bool(left),
        "registered": registered,
        "same": first is second,
        "paths": [[path.partition("-")[0] for path in await answered(app, [one, two])] for app in (first, second)],
    }


async def start_and_stop(answer, inside, ways=("def", "def", "def"), failing=(), subclass=False):
    """Starts and stops an app of three config classes on four paths, the first on two of them. By their names, or by
    their paths, the classes would come in a different order. `failing` names who fails at what: ["B", "initialized"];
    `subclass`: C is one of A."""
    events = fresh(answer, inside)
    classes, fails = [], {name: [] for name in "ABC"}
    for name, way in zip("ABC", ways, strict=True):
        base = classes[0] if subclass and name == "C" else None
        classes.append(config_class(events, name, way, fails[name], base))
        classes[-1].__name__ = {"A": "Model", "B": "Index", "C": "Store"}[name]
    for path, kind in zip(map(new, ("/n", "/b", "/x", "/c")), (*classes[:2], classes[0], classes[2]), strict=True):
        answer.HandlerFactory.register_handler(path, kind, handler_class(events))
    lifespan = Lifespan(answer.create_app())
    before = list(events)
    for name, what in [failing] if failing else []:
        fails[name].append(what)
    started = await lifespan.start()
    at_start = list(events)
    stopped = await lifespan.stop() if started == "complete" else None
    return {
        "before": before,
        "started": started,
        "at start": at_start,
        "stopped": stopped,
        "at stop": events[len(at_start) :],
    }


async def held_start(answer, inside):
    """Holds an `async def initialize`: whether the app says meanwhile that it has started, and afterwards."""
    events, go = fresh(answer, inside), asyncio.Event()
    kind = config_class(events)

    async def initialize(self):
        events.append("entered")
        await go.wait()

    kind.initialize = initialize
    answer.HandlerFactory.register_handler(new("/ask"), kind, handler_class(events))
    starting = asyncio.ensure_future(Lifespan(answer.create_app()).start())
    for _ in range(100):
        await asyncio.sleep(0)
    meanwhile = starting.done()
    go.set()
    return {"entered": "entered" in events, "meanwhile": meanwhile, "started": await starting}


async def two_of_one_name(answer, inside):
    """Starts an app of two config classes of one name."""
    events = fresh(answer, inside)
    for path in map(new, ("/one", "/two")):
        answer.HandlerFactory.register_handler(path, config_class(events, "Config"), handler_class(events))
    await Lifespan(answer.create_app()).start()
    return events


async def two_apps(answer, inside):
    """Starts two apps and stops the first; asks the second before and after. A third is of the first's class."""
    events = fresh(answer, inside)
    apps, kinds = [], [config_class(events, name) for name in ("First", "Second")]
    for kind in kinds:
        path = new("/ask")
        answer.HandlerFactory.register_handler(path, kind, handler_class(events))
        apps.append(Lifespan(answer.create_app()))
    for app in apps:
        await app.start()
    started = list(events)
    transport = httpx.ASGITransport(apps[1].app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        before = await client.post(path, json={"text": "hi"})
        asked = len(events)
        await apps[0].stop()
        stopped = events[asked:]
        after = await client.post(path, json={"text": "hi"})
    second = {"before": f"{before.status_code} {before.text}", "after": f"{after.status_code} {after.text}"}
    asked = len(events)
    answer.HandlerFactory.register_handler(new("/ask"), kinds[0], handler_class(events))
    await Lifespan(answer.create_app()).start()
    return {"started": started, "stopped": stopped, **second, "later": events[asked:]}


async def two_cases(answer, inside):
    """[what a path is answered with, and what the same in capital letters is], or why the second was refused."""
    with contextlib.suppress(Exception):
        answer.create_app()  # not `fresh`: the events of the served app go on
    config, path = config_class([]), new("/chat")
    paths, replies = (path, path.upper()), []
    for each in paths:
        handler = handler_class([], lambda self, given, each=each: each)
        told = inside.outcome(answer.HandlerFactory.register_handler, each, config, handler)
        if "raised" in told:
            return told["said"]
    app = Lifespan(answer.create_app())
    await app.start()
    transport = httpx.ASGITransport(app.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        for each in paths:
            reply = await client.post(each, json={})
            replies.append(each.partition("-")[0] if reply.text == f'"{each}"' else f"{reply.status_code} {reply.text}")
    await app.stop()
    return replies


def contexts():
    """The pydantic models of the scenes."""
    from pydantic import BaseModel, Field

    class Question(BaseModel):
        text: str
        count: int = Field(default=1, ge=1)

    class Answer(BaseModel):
        text: str = Field(alias="answerText")

    return Question, Answer


def service(answer, inside):
    """The app whose paths the tests ask."""
    events = fresh(answer, inside)
    Question, Answer = contexts()
    config = config_class(events, "Config")
    makes = functools.partial(handler_class, events)
    inside.notes["made"] = []

    def say_what(self, processed_input):
        kind = type(processed_input)
        shown = processed_input.model_dump() if kind is Question else processed_input
        return {"type": kind.__name__, "value": shown, "ready": getattr(self.config, "ready", False)}

    async def keep(self, processed_input):
        """Keeps what it got in self while another request is answered."""
        self.text = processed_input["text"]
        number = len(inside.notes["made"])
        inside.notes["made"].append(id(self))
        inside.kept.setdefault("handlers", []).append(self)
        if number == 0:
            while len(inside.notes["made"]) < 2:
                await asyncio.sleep(0.002)
        return {"text": self.text, "handler": id(self)}

    def pieces(self, processed_input):
        yield "one"
        yield "two"

    def fails(self, processed_input):
        from fastapi import HTTPException

        if processed_input["what"] == "teapot":
            raise HTTPException(418, "a teapot")
        raise KeyError("secret")

    async def wait(self, processed_input):
        events.append("waits")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    register = answer.HandlerFactory.register_handler
    register("/json", config, makes(say_what))
    register("/question", config, makes(say_what), request_context=Question)
    register("/answer", config, makes(lambda self, given: given), response_context=Answer)
    register("/both", config, makes(say_what), request_context=Question, response_context=Answer)
    register("/keep", config, makes(keep))
    register("/stream", config, makes(pieces))
    register("/fails", config, makes(fails))
    register("/wait", config, makes(wait))
    register("/first", config, makes(lambda self, given: "first"))
    register("/second", config, makes(lambda self, given: "second"))
    register("/third/", config, makes(lambda self, given: "third/"))
    same = makes()
    register("/one", config_class(events, "One"), same)
    register("/two", config_class(events, "Two"), same)
    return answer.create_app()


def defaults_of_start_app(answer, inside):
    """The defaults of its parameters; also runs it with nothing registered."""
    fresh(answer, inside)
    parameters = inspect.signature(answer.start_app).parameters
    found = {name: parameters[name].default for name in ("host", "port") if name in parameters}
    return {**{name: inside.plain(value) for name, value in found.items()}}


def noted(answer, inside, file):
    """The lines that a program has noted in the file."""
    return Path(file).read_text().splitlines() if Path(file).exists() else []


# what the tests share


def served(room):
    """Http to the service of a room that tests share."""
    if "http" not in room.kept:
        room.kept["http"] = Http(room, room.serve(service))
    return room.kept["http"]


def shown(told):
    """What came of a call, in words."""
    return f"{told['raised'][0]}: {told['message']}" if "raised" in told else f"no error, {told['value']!r}"


def until(holds, limit_s):
    """Waits until that holds; whether it came to."""
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# the tests


def test_registering_only_notes(shared_room):
    program(shared_room)  # it imports what it needs while other tests run
    found = shared_room.play(registering)
    require(
        found["registered"] == [],
        "register_handler creates or calls something: it should only record the registration",
        sent="register_handler(path, Config, Handler), twice",
        expected="nothing is called",
        got=", ".join(found["registered"]),
    )
    require(found["fastapi"], "create_app does not return a FastAPI app")
    require(
        found["created"] == [],
        "create_app creates instances or calls their methods: do that when the app starts",
        sent="create_app()",
        expected="nothing is called",
        got=", ".join(found["created"]),
    )


def require_refused(room, case, kind, name):
    """Requires that a registration is refused with an error of that kind that contains the name."""
    told = room.play(refused, case=case)["told"]
    facts = {"sent": f"register_handler, {case}", "expected": f"{kind} that names {name}", "got": shown(told)}
    if "raised" not in told:
        fail("an invalid registration is not refused", **facts)
    mistake = f"an invalid registration is refused with an error other than {kind}"
    require(kind in told["raised"], mistake, **facts)
    require(name in told["message"], "the error does not say what was wrong", **facts)


def test_a_wrong_path_is_a_value_error(shared_room):
    require_refused(shared_room, "no slash", "ValueError", "chat")
    require_refused(shared_room, "an empty path", "ValueError", "")
    require_refused(shared_room, "twice", "ValueError", "/twice-")


def test_a_wrong_class_is_a_type_error(shared_room):
    for case, name in {
        "a config class of another kind": "Stranger",
        "a handler class of another kind": "Stranger",
        "both the wrong way round": "Handler",
        "an object as the config class": "<the stranger>",
        "an object as the handler class": "<the stranger>",
        "None as the handler class": "None",
        "a function as the config class": repr(print),
        "an instance as the config class": "Config object at",
    }.items():
        require_refused(shared_room, case, "TypeError", name)


def test_what_was_refused_leaves_nothing_behind(shared_room):
    for case in ("no slash", "a config class of another kind", "a handler class of another kind", "twice"):
        found = shared_room.play(refused, case=case)
        mistake = "after a refused registration, the path counts as registered"
        facts = {"sent": f"register_handler, {case}; then a valid one for /path"}
        if "raised" in found["after"]:
            fail(mistake, **facts, expected="it is accepted", got=shown(found["after"]))
        expected = ["/twice", "/path"] if case == "twice" else ["/path"]
        require(
            sorted(found["paths"]) == sorted(expected),
            "a refused registration ends up in the app",
            **facts,
            expected=expected,
            got=found["paths"],
        )


def test_create_app_leaves_the_registry_empty(shared_room):
    found = shared_room.play(second_apps)
    registered = found["registered"]
    require(
        not found["left"],
        "after create_app, the registry is not empty",
        sent="create_app() a second time, with nothing registered since",
        expected="nothing that was registered for the first app",
        got="an app with the first one's path",
    )
    if "raised" in registered:
        mistake = "a path of an earlier app cannot be registered again"
        fail(mistake, sent="register_handler('/one', ...) after create_app()", got=shown(registered))
    require(not found["same"], "create_app returns the same app again: two apps should share nothing")
    require(
        found["paths"] == [["/one"], ["/one", "/two"]],
        "an app does not have exactly the paths that were registered for it",
        sent="/one, create_app(); /one and /two, create_app()",
        expected="/one; /one and /two",
        got=found["paths"],
    )


def test_nothing_registered_is_a_value_error(shared_room):
    empty = shared_room.play(second_apps)["empty"]
    require(
        "ValueError" in empty.get("raised", ()),
        "create_app with nothing registered does not raise ValueError",
        expected="ValueError",
        got=shown(empty),
    )


def test_configs_are_initialised_once_each_in_order(shared_room):
    plain = ("def", "def", "def")
    for ways, subclass in ((plain, False), (("async def", "def", "async def"), False), (plain, True)):
        found = shared_room.play(start_and_stop, ways=ways, subclass=subclass)
        facts = {"sent": f"A on /n and /x, B on /b, C on /c; initialize is {', '.join(ways)}; the app starts"}
        if subclass:
            facts["sent"] += "; C is a subclass of A"
        facts |= {"got": ", ".join(found["at start"]) or "nothing"}
        require(found["started"] == "complete", "the app does not start", **facts)
        initialized = [event for event in found["at start"] if event.endswith("initialized")]
        expected = ["A initialized", "B initialized", "C initialized"]
        mistake = "configs are not initialised in the order in which they were registered"
        if not initialized:
            mistake = "no config is initialised when the app starts"
        elif len(set(initialized)) < len(initialized) or found["at start"].count("A made") > 1:
            mistake = "a config class that two paths use is instantiated or initialised twice"
        elif len(initialized) < 3:
            mistake = "an `async def initialize` is not awaited" if "async def" in ways else "a config is left out"
            if subclass:
                mistake = "a subclass of a config class gets its parent's config: they are two classes"
        holds = initialized == expected and found["at start"].count("A made") == 1
        require(holds, mistake, expected=", ".join(expected), **facts)


def test_no_request_is_answered_before_all_is_initialised(shared_room):
    found = shared_room.play(held_start)
    if found["entered"]:  # else another test's concern
        require(
            not found["meanwhile"],
            "the app accepts requests while a config is still being initialised",
            sent="an async initialize that takes a long time",
            expected="the start-up waits for it",
            got="the start-up was already complete",
        )


def test_two_classes_of_one_name_are_two(shared_room):
    events = shared_room.play(two_of_one_name)
    require(
        events.count("Config initialized") == 2,
        "two config classes with the same name are treated as one",
        expected="both are initialised",
        got=", ".join(events),
    )


def test_two_apps_share_nothing(shared_room):
    found = shared_room.play(two_apps)
    require(
        found["started"] == ["First made", "First initialized", "Second made", "Second initialized"],
        "two apps share their configs: each should create those registered for it",
        expected="First made, First initialized, Second made, Second initialized",
        got=", ".join(found["started"]),
    )
    require(
        found["stopped"] == ["First closed"],
        "when one app stops, configs that are not its own are closed, too",
        expected="First closed",
        got=", ".join(found["stopped"]) or "nothing",
    )
    require(
        found["after"] == found["before"],
        "two apps share their configs: when one stops, the other loses its configs",
        sent="two apps started; POST to the second before and after the first is stopped",
        expected=f"{found['before']} both times",
        got=f"afterwards {found['after']}",
    )
    require(
        found["later"] == ["First made", "First initialized"],
        "two apps share their configs: an app that has stopped leaves its closed config to the next one",
        sent="an app that uses the config class First starts and stops; then another such app starts",
        expected="First made, First initialized, as before",
        got=", ".join(found["later"]) or "nothing is created",
    )


def test_configs_are_closed_in_reverse_order(shared_room):
    for ways in (("def", "def", "def"), ("def", "async def", "async def")):
        found = shared_room.play(start_and_stop, ways=ways)
        expected = ["C closed", "B closed", "A closed"]
        closed = found["at stop"]
        mistake = "configs are not closed in reverse order"
        if not closed:
            mistake = "nothing is closed when the app stops"
        elif len(set(closed)) < len(closed):
            mistake = "a config is closed twice"
        elif len(closed) < 3:
            mistake = "an `async def close` is not awaited" if "async def" in ways else "a config is not closed"
        facts = {"sent": f"close is {', '.join(ways)}; the app stops", "expected": ", ".join(expected)}
        require(closed == expected, mistake, **facts, got=", ".join(closed) or "nothing")


def test_an_error_in_one_close_keeps_no_other_open(shared_room):
    for who, ways in (("C", ("def",) * 3), ("B", ("async def",) * 3)):
        found = shared_room.play(start_and_stop, ways=ways, failing=[who, "closed"])
        expected = ["C closed", "B closed", "A closed"]
        require(
            found["at stop"] == expected,
            "an error in one config's close keeps the others from being closed",
            sent=f"the app stops, and the close of {who} raises",
            expected=", ".join(expected),
            got=", ".join(found["at stop"]) or "nothing",
        )


def test_a_failing_initialize_fails_the_start_up(shared_room):
    for way, what in (("def", "initialized"), ("async def", "initialized"), ("def", "made")):
        found = shared_room.play(start_and_stop, ways=(way,) * 3, failing=["B", what])
        if f"B {what}" in found["before"]:  # another test's concern
            continue
        sent = f"{way} initialize of B raises" if what == "initialized" else "the __init__ of B raises"
        require(
            found["started"] == "failed",
            "a config fails when the app starts, but the app starts anyway",
            sent=sent,
            expected="the start-up fails",
            got=found["started"],
        )
        closed = [event for event in found["at start"] if event.endswith("closed")]
        _, failed, later = ", ".join(found["at start"]).partition(f"B {what}")
        require(
            bool(failed) and "initialized" not in later,
            "after one config has failed, the next is still initialised",
            sent=sent,
            got=", ".join(found["at start"]),
        )
        mistake = "when start-up fails, the configs that were already initialised are not closed"
        if what == "made":
            mistake = "when a config's __init__ fails, the configs that were already initialised are not closed"
        require(
            closed.count("A closed") == 1 or "A initialized" not in found["at start"],
            mistake,
            sent=sent,
            expected="A closed",
            got=", ".join(closed) or "nothing is closed",
        )


def test_each_request_has_a_handler_of_its_own(shared_room):
    http = served(shared_room)
    first = http.start("POST", "/keep", json={"text": "first"})
    until(lambda: shared_room.notes()["made"], shared_room.limit_s * 0.25)
    second = http.post("/keep", json={"text": "second"})
    reply = first.reply()
    facts = {"sent": "two requests at once; the handler keeps their text in self"}
    if reply.status != 200 or second.status != 200:
        fail("a request fails", **facts, **http.facts(second if reply.status == 200 else reply))
    texts = [reply.data.get("text"), second.data.get("text")]
    mistake = "two requests share one handler: what one keeps in self, the other overwrites"
    require(texts == ["first", "second"], mistake, **facts, expected="first, second", got=texts)
    require(reply.data["handler"] != second.data["handler"], mistake, **facts, got="the same object")


def test_each_path_is_answered_by_its_own_handler(shared_room, room):
    for name in ("first", "second", "third/"):
        reply = served(shared_room).post(f"/{name}", json={"text": "hi"})
        mistake = "a request that its handler can answer does not get a 200"
        facts = {"sent": f"POST /{name}", "expected": f'200 "{name}"'}
        require(reply.status == 200, mistake, **facts, **served(shared_room).facts(reply))
        require(
            reply.data == name,
            "a path is answered by another path's handler: endpoints defined in a loop all see its last values",
            **facts,
            **served(shared_room).facts(reply),
        )
    # in a room of its own: where apps share their configs, the end of this one would end the others'
    got = room.play(two_cases)
    # an app that answers neither is another test's concern
    require(
        got == ["/chat", "/CHAT"] or all(each.startswith(("4", "5")) for each in got),
        "two paths that differ only in case are treated as one",
        sent="register_handler('/chat', ...) and register_handler('/CHAT', ...), and a request to each",
        expected="each is answered by its own handler",
        got=got,
    )


def test_the_handler_gets_its_config(shared_room):
    reply = served(shared_room).post("/json", json={"text": "hi"})
    facts = served(shared_room).facts(reply)
    require(reply.status == 200, "a request that its handler can answer does not get a 200", sent="POST /json", **facts)
    ready = isinstance(reply.data, dict) and reply.data.get("ready")
    require(
        ready is True,
        "a handler does not get the config that was initialised",
        expected="self.config is the one that was initialised at start-up",
        **facts,
    )
    for name in ("One", "Two"):
        reply = served(shared_room).post(f"/{name.lower()}", json={})
        require(
            reply.status == 200 and reply.data == {"config": name},
            "a handler gets the config of another path with the same handler class",
            sent=f"one handler class at two paths, with the configs One and Two; POST /{name.lower()}",
            expected=f"the config {name}",
            **served(shared_room).facts(reply),
        )


def test_without_request_context_any_json_arrives(shared_room):
    for value in ({"text": "hi"}, [1, "two"], "text", 7, 0.5, False, 0, "", [], {}, "你好"):
        content = json.dumps(value, ensure_ascii=False).encode()
        reply = served(shared_room).post("/json", content=content, headers={"content-type": "application/json"})
        facts = {"sent": f"{value!r}, no request_context", "expected": f"pre_process gets {value!r}"}
        mistake = "without request_context, the JSON value does not reach pre_process"
        require(reply.status == 200, mistake, **facts, **served(shared_room).facts(reply))
        got = reply.data.get("value")
        same = got == value and type(got) is type(value)
        require(same, mistake, **facts, got=f"{reply.data.get('type')} {got!r}")


def actions_called(room, http, path, **request):
    """The reply, and what the handler noted meanwhile."""
    before = len(room.notes()["events"])
    reply = http.post(path, **request)
    return reply, room.notes()["events"][before:]


def test_a_body_that_is_not_json_is_422(shared_room):
    http = served(shared_room)
    headers = {"content-type": "application/json"}
    for body, what in ((b"{", "half an object"), (b"hello", "no JSON"), (b"", "no body"), (b'"\xe4"', "no text")):
        reply, events = actions_called(shared_room, http, "/json", content=body, headers=headers)
        allowed = (422, 400) if what == "no text" else (422,)
        facts = {"sent": f"{what}: {body!r}", "expected": "422"}
        mistake = "a body that is not JSON does not get a 422"
        require(reply.status in allowed, mistake, **facts, **http.facts(reply))
        require("Handler pre_process" not in events, "an action is called although the body is not JSON", **facts)


def test_request_context_validates_the_body(shared_room):
    http = served(shared_room)
    reply = http.post("/question", json={"text": "hi"})
    facts = {"sent": '{"text": "hi"}, request_context=Question'}
    require(reply.status == 200, "a body that matches request_context is refused", **facts, **http.facts(reply))
    require(
        reply.data.get("type") == "Question",
        "pre_process does not get an instance of request_context",
        **facts,
        expected="a Question",
        got=f"{reply.data.get('type')}",
    )
    mistake = "the instance of request_context does not have the body's values"
    require(reply.data["value"] == {"text": "hi", "count": 1}, mistake, **facts, got=reply.data["value"])
    wrong = [{}, {"text": 5}, {"text": "hi", "count": 0}, ["hi"], "hi"]
    for body in wrong:
        reply, events = actions_called(shared_room, http, "/question", json=body)
        facts = {"sent": f"{body}, request_context=Question", "expected": "422, and no action is called"}
        mistake = "a body that does not match request_context does not get a 422"
        require(reply.status == 422, mistake, **facts, **http.facts(reply))
        mistake = "an action is called although the body does not match request_context"
        require("Handler pre_process" not in events, mistake, **facts, got=", ".join(events))
    headers = {"content-type": "application/json"}
    reply, _ = actions_called(shared_room, http, "/question", content=b"{", headers=headers)
    require(reply.status == 422, "a body that is not JSON does not get a 422", sent="{", **http.facts(reply))


def test_response_context_reaches_the_answer(shared_room):
    http = served(shared_room)
    reply = http.post("/answer", json={"answerText": "hi", "more": 1})
    facts = {"sent": 'run returns {"answerText": "hi", "more": 1}, response_context=Answer'}
    mistake = "response_context has no effect on the answer"
    holds = reply.status == 200 and reply.data == {"answerText": "hi"}
    require(holds, mistake, **facts, expected='200 {"answerText": "hi"}', **http.facts(reply))
    reply = http.post("/answer", json={"more": 1})
    facts = {"sent": 'run returns {"more": 1}, response_context=Answer', "expected": "500"}
    require(
        reply.status == 500,
        "a result that does not match response_context does not get a 500",
        **facts,
        **http.facts(reply),
    )


def test_the_openapi_document_shows_both_models(shared_room):
    http = served(shared_room)
    document = http.get("/openapi.json").data
    if not isinstance(document, dict):
        fail("there is no OpenAPI document", sent="GET /openapi.json")
    for path, request, response in (
        ("/question", "Question", None),
        ("/answer", None, "Answer"),
        ("/both", "Question", "Answer"),
    ):
        operation = document.get("paths", {}).get(path, {}).get("post", {})
        body = str(operation.get("requestBody", {}))
        ok = str(operation.get("responses", {}).get("200", {}))
        sent = f"GET /openapi.json; {path} has request_context={request}, response_context={response}"
        if request:
            mistake = "the OpenAPI document does not show request_context as the request's body"
            schema = document.get("components", {}).get("schemas", {}).get(request, {})
            holds = request in body and "text" in schema.get("properties", {})
            require(holds, mistake, sent=sent, expected=f"a schema {request}", got=body)
        if response:
            mistake = "the OpenAPI document does not show response_context as the 200 answer"
            schema = document.get("components", {}).get("schemas", {}).get(response, {})
            holds = response in ok and "answerText" in schema.get("properties", {})
            require(holds, mistake, sent=sent, expected=f"a schema {response}", got=ok)


def test_respond_answers(shared_room):
    http = served(shared_room)
    stream = Stream(shared_room, http.base_url, {}, path="/stream")
    stream.ended()
    got = [event.json for event in stream.events]
    mistake = "a stream is not answered the way respond answers it"
    require(got == ["one", "two"], mistake, sent="run returns a generator", expected="two events", got=str(stream))
    reply = http.post("/fails", json={"what": "teapot"})
    holds = reply.status == 418 and reply.data == {"detail": "a teapot"}
    mistake = "an HTTPException is not answered the way respond answers it"
    require(holds, mistake, sent="run raises HTTPException(418)", **http.facts(reply))
    reply = http.post("/fails", json={"what": "other"})
    holds = reply.status == 500 and "secret" not in reply.text and "KeyError" not in reply.text
    mistake = "any other error is not answered the way respond answers it, with a plain 500"
    require(holds, mistake, sent="run raises KeyError", got=str(reply))


def test_a_client_that_leaves_stops_the_work(shared_room):
    http = served(shared_room)
    stream = Stream(shared_room, http.base_url, {}, path="/wait")
    limit_s = shared_room.limit_s * 0.25
    if not until(lambda: "waits" in shared_room.notes()["events"], limit_s):
        raise shared_room.hung("a request never reaches its action", sent="POST /wait")
    stream.leave_and_be_missed()
    require(
        until(lambda: "cancelled" in shared_room.notes()["events"], limit_s),
        "when the client leaves, its action keeps running: pass the request itself to respond, which stops the work",
        expected="the async def action is cancelled",
        got="it is not",
    )


class Service(Program):
    """`services/service.py`, with the answer's start_app."""

    def __init__(self, room):
        self.port = free_port()
        self.notes_file = f"notes of {self.port}"
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        arguments = [str(SERVICE), str(room.answer_file), self.notes_file, HOST, str(self.port)]
        super().__init__(room, arguments, environment, start_python)

    def notes(self):
        return self.room.play(noted, file=self.notes_file)

    def until_listening(self):
        """Waits until it listens; whether it does, and has not ended before."""

        def listens():
            return not self.runs() or any(port == self.port for _, port in self.listening())

        until(listens, START_LIMIT_S)
        return self.runs()

    def open_configs(self):
        """How many configs are initialised and not closed."""
        return self.notes().count("initialized") - self.notes().count("closed")

    def send(self, number, holds):
        """Sends the signal; whether it has ended, or its notes are as they should be, within the limit."""
        with contextlib.suppress(psutil.Error):
            self.parent.send_signal(number)
        return until(lambda: not runs(self.parent) or holds(self.notes()), self.room.limit_s)


def program(room):
    """The Service of a room that tests share."""
    if "program" not in room.kept:
        room.kept["program"] = Service(room)
    return room.kept["program"]


def test_start_app_serves_until_ctrl_c(shared_room):
    found = shared_room.play(defaults_of_start_app)
    mistake = "start_app has the wrong defaults"
    require(found == {"host": "127.0.0.1", "port": 8000}, mistake, expected="127.0.0.1 and 8000", got=found)
    service = program(shared_room)
    if not service.until_listening():
        fail("start_app does not serve: its process ended", detail=shared_room.output())
    mistake = "start_app returns at once: it should serve until Ctrl-C"
    require(not any("returned" in note for note in service.notes()), mistake, got=", ".join(service.notes()))
    address = next((address for address, port in service.listening() if port == service.port), "no address")
    mistake = "start_app does not listen on its host"
    require(address == HOST, mistake, sent=f'start_app(host="{HOST}", port=...)', expected=HOST, got=address)
    reply = Http(shared_room, f"http://{HOST}:{service.port}").post("/ask", json={"text": "hi"})
    mistake = "start_app does not serve what was registered"
    holds = reply.data == {"got": {"text": "hi"}}
    require(holds, mistake, sent="POST /ask", expected="its answer", got=str(reply))
    if not service.send(signal.SIGINT, lambda notes: any("returned" in note for note in notes)):
        raise shared_room.hung("start_app does not return after Ctrl-C", sent="SIGINT", expected="it returns the app")
    notes = service.notes()
    mistake = "after Ctrl-C, the configs are not closed"
    require("closed" in notes, mistake, sent="SIGINT", expected="initialized, closed", got=", ".join(notes))
    require(
        notes[:3] == ["initialized", "closed", "returned FastAPI"],
        "start_app does not return the app after Ctrl-C",
        sent="app = start_app(host=..., port=...), then SIGINT",
        expected="it returns a FastAPI app",
        got=", ".join(notes),
    )


def test_sigterm_closes_everything(shared_room):
    service = program(shared_room)
    # since Ctrl-C it starts for the second time; where that has failed, another test is about it
    if "initialized" not in service.notes() or not until(service.open_configs, shared_room.limit_s):
        return
    if not service.until_listening():
        return
    if not service.send(signal.SIGTERM, lambda notes: False):
        raise shared_room.hung("SIGTERM does not end start_app", sent="SIGTERM")
    notes = service.notes()
    mistake = "after SIGTERM, the configs are not closed"
    got = ", ".join(notes)
    require(service.open_configs() == 0, mistake, sent="SIGTERM", expected="closed again", got=got)
