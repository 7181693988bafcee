"""3.1: the four actions, run inside the room on an event loop whose default pool has 6 threads.

Handlers note what is done with them: which action is called with what, which piece is asked for, what
is closed. A `def` action is held where it stands, unless that is the loop's own thread: then it says so
and goes on. Whatever `run` gives is kept, and so is the stream, so that nothing is closed by luck.
"""

import asyncio
import contextvars
import functools
import inspect
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio

from course.grading.mistakes import fail, require

MANY = 64
POOL = 6
VARIABLE = contextvars.ContextVar("variable", default="not set")
LEFT_OPEN = "run's stream is not closed when {}: its `finally` never runs"
KINDS = ("def generator", "async generator", "object", "object with an iterator")
"""What `run` gives in the tests about leaving."""
CLOSED = {
    "def generator": ["its `finally`"],
    "async generator": ["its `finally`"],
    "object": ["the object"],
    "object with an iterator": ["the iterator", "the object"],
}
"""What has to be closed of each."""


# in the room


class Boom(Exception):
    """An error that cannot be made from its text alone."""

    def __init__(self, code, *, text):
        super().__init__(f"{text} ({code})")


class Elsewhere(Exception):
    """The scene cannot begin: what goes wrong before it is another test's concern."""


def on_a_loop(main):
    """The coroutine function as a scene: on an event loop in a thread, so that one that stands still
    is seen. Gives {"result": ...}, or {"blocked": True} if the loop does not turn any more."""

    @functools.wraps(main)
    def scene(answer, inside, *, soon_s, **arguments):
        outcome, ended = {}, threading.Event()

        async def all_of_it():
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(POOL))
            stage = Stage(answer, inside, soon_s)
            try:
                outcome["result"] = await main(stage, **arguments)
            except Elsewhere:
                outcome["result"] = None
            except BaseException as error:  # noqa: BLE001 - goes to the test
                outcome["error"] = error
            ended.set()

        seen = Stage.moves
        threading.Thread(target=asyncio.run, args=(all_of_it(),), daemon=True).start()
        while not ended.wait(soon_s):
            if Stage.moves == seen:
                return {"blocked": True}
            seen = Stage.moves
        if "error" in outcome:
            raise outcome["error"]
        return outcome

    return scene


class Stage:
    """What the scenes share: the answer, and waiting with an end to it."""

    moves = 0
    """How often an event loop of a scene has come round in `until`."""

    def __init__(self, answer, inside, soon_s):
        self.answer, self.inside, self.soon_s = answer, inside, soon_s
        self.loops_thread = threading.get_ident()
        self.kept = []

    async def until(self, holds, limit_s=None):
        """Waits until it holds; False when it does not for that long, on a busy machine for longer."""
        limit_s = limit_s or self.soon_s
        end, rounds = time.monotonic() + limit_s, 400 * limit_s
        while not holds():
            if time.monotonic() > end and rounds < 0:
                return False
            await asyncio.sleep(0.001)
            Stage.moves += 1
            rounds -= 1
        return True

    async def a_while(self):
        """Gives what should not happen the time to happen."""
        for _ in range(8):
            await asyncio.sleep(0.001)

    async def within(self, awaitable, limit_s=None):
        """What comes of it: {"value": ...}, {"raised": ..., "message": ..., "where": ...} or {"hangs": True}."""
        task = asyncio.ensure_future(awaitable)
        self.kept.append(task)
        if not await self.until(task.done, limit_s):
            return {"hangs": True}
        return self.outcome(task)

    def outcome(self, task):
        if task.cancelled():
            return {"raised": "CancelledError", "message": "", "where": None}
        told = self.inside.outcome(task.result)
        return told if "value" in told else {**told, "raised": told["raised"][0]}

    def call(self, handler, request_body=None):
        """What `await` takes of a call of process."""
        called = self.answer.process(handler, request_body)
        if inspect.isawaitable(called):
            return called
        return failing(TypeError(f"process returns {type(called).__name__}, and `await` cannot take that"))

    async def process(self, handler, request_body=None):
        """`within` of process."""
        return await self.within(self.call(handler, request_body))

    async def stream(self, handler):
        """What process gives for a handler whose run returns a stream.

        Raises:
            Elsewhere: it gives none.
        """
        task = asyncio.ensure_future(self.call(handler, "body"))
        self.kept.append(task)
        if not await self.until(task.done) or task.exception():
            raise Elsewhere
        if not (hasattr(task.result(), "__anext__") and hasattr(task.result(), "aclose")):
            raise Elsewhere
        return task.result()

    async def begun(self, work, most, post_process=None):
        """A stream of that work, from which that many pieces have been read.

        Raises:
            Elsewhere: they do not come out, or run has made more of them.
        """
        stream = await self.stream(handler_of(self, work, post_process))
        note = await self.read(stream, most=most)
        if note["pieces"] != work.pieces[:most] or work.steps > most:
            raise Elsewhere
        return stream

    async def ask_and_read(self, handler, most=None):
        """Calls process and reads pieces of what it gives: {"pieces": [...], "end": None, "end", "hangs"
        or the error}."""
        return await self.read(self.call(handler, "body"), most)

    async def read(self, stream, most=None):
        """Reads pieces of a stream, or of what comes of an awaitable."""
        note = {"pieces": [], "end": None}

        async def read():
            nonlocal stream
            if inspect.isawaitable(stream):
                stream = await stream
                self.kept.append(stream)
            try:
                while len(note["pieces"]) != most:
                    note["pieces"].append(self.inside.plain(await stream.__anext__()))
            except StopAsyncIteration:
                note["end"] = "end"

        told = await self.within(read())
        if "value" not in told:
            note["end"] = "hangs" if "hangs" in told else told
        return note


async def failing(error):
    raise error


class Held:
    """Where `def` actions stand until they are let go. On the loop's own thread nothing is held."""

    def __init__(self, stage):
        self.stage = stage
        self.entered = self.ended = self.on_the_loop = False
        self.go = threading.Event()

    def __call__(self):
        self.entered = True
        if threading.get_ident() == self.stage.loops_thread:
            self.on_the_loop = True
        else:
            self.go.wait()
        self.ended = True


class Work:
    """What `run` gives, and what has been done with it.

    hold: before which step (from 1) it is held; fail: which step raises; held_finally: whether the
    `finally` of a def generator is held.
    """

    def __init__(self, stage, kind, *, pieces=6, hold=None, fail=None, held_finally=False):
        self.stage, self.kind, self.pieces = stage, kind, list(range(1, pieces + 1))
        self.hold, self.fail, self.held_finally = hold, fail, held_finally
        self.held, self.finally_held = Held(stage), Held(stage)
        self.released = asyncio.Event()
        self.steps, self.on_the_loop, self.closed = 0, False, []

    def give(self):
        given = {
            "def generator": self._generator,
            "async generator": self._async_generator,
            "object": functools.partial(ThingAndIterator, self),
            "object with an iterator": functools.partial(Thing, self),
            "object with close": functools.partial(ThingWithClose, self),
            "object with async close": functools.partial(ThingWithAsyncClose, self),
            "object with an async generator": functools.partial(ThingWithAGenerator, self),
        }[self.kind]()
        self.stage.kept.append(given)
        return given

    def _count(self):
        self.steps += 1
        if self.steps == self.fail:
            raise Boom(self.steps, text="the step fails")

    def _generator(self):
        try:
            for number, piece in enumerate(self.pieces, 1):
                self.on_the_loop |= threading.get_ident() == self.stage.loops_thread
                self._count()
                if number == self.hold:
                    self.held()
                yield piece
        finally:
            if self.held_finally:
                self.finally_held()
            self.closed.append("its `finally`")

    async def step(self):
        self._count()
        if self.steps == self.hold:
            self.held.entered = True
            await self.released.wait()

    async def _async_generator(self):
        try:
            for piece in self.pieces:
                await self.step()
                yield piece
        finally:
            if self.held_finally:
                for _ in range(20):
                    await asyncio.sleep(0)
            self.closed.append("its `finally`")


class Iterator:
    def __init__(self, work):
        self.work, self.left = work, list(work.pieces)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        await self.work.step()
        return self.left.pop(0)

    async def aclose(self):
        self.work.closed.append("the iterator")


class ThingAndIterator(Iterator):
    async def aclose(self):
        self.work.closed.append("the object")


class Thing:
    def __init__(self, work):
        self.work = work

    def __aiter__(self):
        iterator = Iterator(self.work)
        self.work.stage.kept.append(iterator)
        return iterator

    async def aclose(self):
        self.work.closed.append("the object")


class BareIterator:
    def __init__(self, work):
        self.work, self.left = work, list(work.pieces)

    def __aiter__(self):
        return self

    __anext__ = Iterator.__anext__


class ThingWithClose(BareIterator):
    def close(self):
        self.work.closed.append("the object")


class ThingWithAsyncClose(BareIterator):
    async def close(self):
        self.work.closed.append("the object")


class ThingWithAGenerator:
    def __init__(self, work):
        self.work = work

    def __aiter__(self):
        iterator = self.work._async_generator()
        self.work.stage.kept.append(iterator)
        return iterator


def handler_of(stage, work, post_process=None):
    """A handler whose run gives that work."""

    class Handler(stage.answer.RequestHandler):
        def run(self, processed_input):
            return work.give()

    if post_process:
        Handler.post_process = post_process
    return Handler(None)


def as_async(action):
    async def async_action(self, argument):
        return action(self, argument)

    return async_action


@on_a_loop
async def base_classes(stage):
    async def settled(value):
        return await value if inspect.isawaitable(value) else value

    async def settled_run(handler, body):
        return await settled(handler.run(body))

    config, body = stage.answer.ConfigHandler(), ["a body"]
    nothing = [await settled(config.initialize()), await settled(config.close())]
    handler = stage.answer.RequestHandler(config)
    stage.answer.RequestHandler(stage.answer.ConfigHandler())  # what one keeps is not another's
    return {
        "nothing": [stage.inside.plain(each) for each in nothing],
        "config": handler.config is config,
        "pre_process": await settled(handler.pre_process(body)) is body,
        "post_process": await settled(handler.post_process(body)) is body,
        "run": await stage.within(settled_run(handler, body)),
    }


@on_a_loop
async def all_actions(stage, asynchronous):
    """Which action was called with what; `asynchronous` names those that are `async def`."""
    calls = []

    def action(name):
        def action(self, argument):
            calls.append([name, stage.inside.plain(argument)])
            return argument * 10 + names.index(name) + 1 if isinstance(argument, int) else None

        return as_async(action) if name in asynchronous else action

    names = ("pre_process", "run", "post_process")
    kind = type("Handler", (stage.answer.RequestHandler,), {name: action(name) for name in names})
    return {**await stage.process(kind(None), 5), "calls": calls}


RESULTS = {
    "a list": [1, 2],
    "a string": "text",
    "a tuple": (1, 2),
    "a dict": {"a": 1},
    "None": None,
    "0": 0,
    "bytes": b"bytes",
    "a set": {1},
    "a range": range(3),
    "a map": map(str, [1, 2]),
    "a list's iterator": iter([1, 2]),
    "an empty list": [],
}


@on_a_loop
async def one_result(stage, name, asynchronous):
    """What run and post_process were called with, and whether process gave what that returned."""
    result, passed_on, given = RESULTS[name], [], []

    class Handler(stage.answer.RequestHandler):
        def pre_process(self, request_body):
            return result

        def run(self, processed_input):
            passed_on.append(processed_input is result)
            return result

        def post_process(self, inference_result):
            given.append(inference_result)
            return inference_result

    if asynchronous:
        Handler.run = as_async(Handler.run)
    task = asyncio.ensure_future(stage.call(Handler(None), "a body"))
    if not await stage.until(task.done):
        return {"hangs": True}
    same = len(given) == 1 and given[0] is result
    out = "the result" if not task.exception() and task.result() is result else "something else"
    raised = None if not task.exception() else stage.outcome(task)
    shown = [type(each).__name__ for each in given]
    returned = type(task.result()).__name__ if not raised else None
    told = {"same": same, "out": out, "raised": raised, "given": shown, "returned": returned}
    return {**told, "passed_on": passed_on == [True]}


@on_a_loop
async def held_action(stage, name):
    """Holds the def action of that name; whether the loop turned meanwhile, and what came of it."""
    held = Held(stage)

    def action(self, argument):
        held()
        return argument

    class Handler(stage.answer.RequestHandler):
        def run(self, processed_input):
            return processed_input

    setattr(Handler, name, action)
    task = asyncio.ensure_future(stage.call(Handler(None), 1))
    entered = await stage.until(lambda: held.entered or task.done())
    await stage.a_while()
    held.go.set()
    told = await stage.within(task)
    return {"entered": entered, "on the loop": held.on_the_loop, "told": told}


@on_a_loop
async def held_post_process_of_a_piece(stage, kind):
    """Holds a def post_process at a stream's first piece; whether it was on the loop."""
    held = Held(stage)

    def post_process(self, piece):
        held()
        return piece

    reading = asyncio.ensure_future(stage.ask_and_read(handler_of(stage, Work(stage, kind), post_process), most=1))
    await stage.until(lambda: held.entered or reading.done())
    await stage.a_while()
    held.go.set()
    await stage.within(reading)
    return held.on_the_loop


@on_a_loop
async def where_async_actions_run(stage):
    """For each async def action whether it ran on the caller's event loop."""
    loop, found = asyncio.get_running_loop(), {}

    class Handler(stage.answer.RequestHandler):
        async def pre_process(self, request_body):
            found["pre_process"] = asyncio.get_running_loop() is loop

        async def run(self, processed_input):
            found["run"] = asyncio.get_running_loop() is loop

        async def post_process(self, inference_result):
            found["post_process"] = asyncio.get_running_loop() is loop

    return {**await stage.process(Handler(None)), "found": found}


@on_a_loop
async def context_variables(stage, asynchronous, stream):
    """What each action and each step reads of a variable that is set before process is called."""
    found = []

    def see(what):
        found.append([what, VARIABLE.get()])

    class Handler(stage.answer.RequestHandler):
        def pre_process(self, request_body):
            see("pre_process")

        def run(self, processed_input):
            see("run")
            return self.pieces() if stream else None

        def pieces(self):
            for number in (1, 2):
                see(f"step {number} of run")
                yield number

        async def async_pieces(self):
            for number in (1, 2):
                see(f"step {number} of run")
                yield number

        def post_process(self, inference_result):
            see("post_process")

    if asynchronous:
        for name in ("pre_process", "run", "post_process"):
            setattr(Handler, name, as_async(getattr(Handler, name)))
        Handler.pieces = Handler.async_pieces

    async def ask():
        VARIABLE.set("set")
        given = await stage.call(Handler(None))
        if stream:
            async for _ in given:
                pass

    return {**await stage.within(ask()), "found": found}


def pieces_of(numbers):
    yield from numbers


async def async_pieces_of(numbers):
    for number in numbers:
        yield number


def ways_to_stream(stage):
    """Handler classes by the words that say how their run returns a stream of 1, 2, 3."""
    base = stage.answer.RequestHandler

    class GeneratorFunction(base):
        def run(self, processed_input):
            yield from (1, 2, 3)

    class AsyncGeneratorFunction(base):
        async def run(self, processed_input):
            for number in (1, 2, 3):
                yield number

    def giving(make, asynchronous):
        class Gives(base):
            def run(self, processed_input):
                return make()

        if asynchronous:
            Gives.run = as_async(Gives.run)
        return Gives

    ways = {
        "a generator function": GeneratorFunction,
        "an async generator function": AsyncGeneratorFunction,
    }
    things = {
        "a generator": lambda: pieces_of([1, 2, 3]),
        "an async generator": lambda: async_pieces_of([1, 2, 3]),
        "a generator expression": lambda: (number for number in (1, 2, 3)),
        "an object with __aiter__": Work(stage, "object with an iterator", pieces=3).give,
        "an object with __aiter__ and __anext__": Work(stage, "object with close", pieces=3).give,
    }
    for name, make in things.items():
        for way in ("def", "async def"):
            ways[f"{way} run that returns {name}"] = giving(make, way == "async def")
    return ways


@on_a_loop
async def streams(stage):
    """For each way to give a stream: what process gives, and what is read from it."""
    found = []
    for way, kind in ways_to_stream(stage).items():
        note = {"way": way, "type": None, "lacks": [], "pieces": [], "end": None}
        found.append(note)
        task = asyncio.ensure_future(stage.call(kind(None)))
        stage.kept.append(task)
        if not await stage.until(task.done):
            note["end"] = "hangs"
            return found
        if task.exception():
            note["end"] = stage.outcome(task)
            continue
        stream = task.result()
        note["type"] = type(stream).__name__
        needed = ("__aiter__", "__anext__", "aclose")
        note["lacks"] = [name for name in needed if not hasattr(stream, name)]
        if not note["lacks"]:
            note |= await stage.read(stream)
        if note["end"] == "hangs":
            return found
    return found


ANY_PIECES = [0, None, "", [], "text", False, ["a"], None, {"a": 1}, 0.0]


@on_a_loop
async def any_pieces(stage, kind, asynchronous):
    """Reads a stream of pieces that are easily lost; post_process pairs each with "done", and makes None of "text"."""

    streams = []

    def post_process(self, inference_result):
        if inspect.isgenerator(inference_result) or hasattr(inference_result, "__aiter__"):
            streams.append(type(inference_result).__name__)
        return None if inference_result == "text" else ["done", inference_result]

    work = Work(stage, kind)
    work.pieces = ANY_PIECES
    handler = handler_of(stage, work, as_async(post_process) if asynchronous else post_process)
    return {**await stage.ask_and_read(handler), "streams": streams}


@on_a_loop
async def pieces_before_a_held_step(stage, kind):
    """Holds run before its third step: what has come out until then, and whether all comes out."""
    work = Work(stage, kind, hold=3)
    early = await stage.ask_and_read(handler_of(stage, work), most=2)
    work.held.go.set()
    work.released.set()
    return early


@on_a_loop
async def steps_that_nobody_asked_for(stage, kind):
    """How many steps run has made each time that the reader has got a piece and asks for no more."""
    work, steps = Work(stage, kind), []
    stream = await stage.stream(handler_of(stage, work))
    for _ in range(3):
        if (await stage.read(stream, most=1))["end"]:
            raise Elsewhere
        if len(steps) < 2:
            await stage.a_while()
        steps.append(work.steps)
    return steps


@on_a_loop
async def held_step(stage, way):
    """Holds a def generator that run gives in that way in its second step; whether the loop turned meanwhile."""
    work = Work(stage, "def generator", hold=2)

    def generator_function(self, processed_input):
        yield from work.give()

    handler = handler_of(stage, work)
    if way == "def run with yield":
        type(handler).run = generator_function
    elif way == "async def run that returns a generator":
        type(handler).run = as_async(type(handler).run)
    task = asyncio.ensure_future(stage.ask_and_read(handler, most=2))
    await stage.until(lambda: work.held.entered or task.done())
    await stage.a_while()
    work.held.go.set()
    await task
    return {"on the loop": work.on_the_loop}


@on_a_loop
async def read_in_other_scopes_and_tasks(stage, kind):
    """Reads the first piece in one scope of anyio, the others in another one in another task."""
    work = Work(stage, kind)
    with anyio.CancelScope():
        stream = await stage.begun(work, 1)

    async def rest():
        with anyio.CancelScope():
            return await stage.read(stream)

    second = await asyncio.ensure_future(rest())
    return {**second, "pieces": [1, *second["pieces"]]}


@on_a_loop
async def failing_action(stage, name, asynchronous):
    def fails(self, argument):
        raise Boom(7, text="no such thing")

    class Handler(stage.answer.RequestHandler):
        def run(self, processed_input):
            return 1

    setattr(Handler, name, as_async(fails) if asynchronous else fails)
    return await stage.process(Handler(None))


@on_a_loop
async def failing_step(stage, kind):
    return await stage.ask_and_read(handler_of(stage, Work(stage, kind, fail=3)))


@on_a_loop
async def failing_post_process(stage, kind, asynchronous):
    """post_process fails at the second piece: what the reader gets, what is closed, and how many
    steps there are before and after one more is asked for."""

    def post_process(self, inference_result):
        if inference_result == 2:
            raise Boom(2, text="post_process fails")
        return inference_result

    work = Work(stage, kind)
    stream = await stage.begun(work, 1, as_async(post_process) if asynchronous else post_process)
    note = await stage.read(stream)
    await stage.until(lambda: set(CLOSED[kind]) <= set(work.closed), stage.soon_s / 3)
    afterwards = await stage.read(stream, most=1)
    return {**note, "closed": work.closed, "steps": work.steps, "afterwards": afterwards}


@on_a_loop
async def cancelled_action(stage, name, asynchronous, scope):
    """Cancels process in that action: whether it was let go, what the action saw, what ran after."""
    held, after, saw = Held(stage), [], []

    def hold(self, argument):
        held()
        return argument

    async def wait(self, argument):
        held.entered = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            saw.append("CancelledError")
            raise

    def noting(other):
        def action(self, argument):
            if held.entered:
                after.append(other)
            return argument

        return action

    names = ("pre_process", "run", "post_process")
    kind = type("Handler", (stage.answer.RequestHandler,), {each: noting(each) for each in names})
    setattr(kind, name, wait if asynchronous else hold)
    leaver = Leaver(stage, stage.call(kind(None), 1), scope)
    entered = await stage.until(lambda: held.entered or leaver.task.done())
    leaver.leave()
    gone = await stage.until(leaver.task.done)
    held.go.set()
    if asynchronous:
        await stage.until(lambda: saw, stage.soon_s / 3)
    else:
        await stage.until(lambda: held.ended)
    await stage.a_while()
    return {
        "entered": entered,
        "on the loop": held.on_the_loop,
        "gone": gone,
        "end": leaver.end,
        "saw": saw,
        "after": after,
    }


class Leaver:
    """Waits for something and is cancelled: once, or by a scope of anyio, which does it again and again
    until the scope is left."""

    def __init__(self, stage, awaitable, scope):
        self.stage, self.end, self.scope = stage, None, anyio.CancelScope() if scope else None
        self.task = asyncio.ensure_future(self._wait(awaitable))

    async def _wait(self, awaitable):
        if self.scope is None:
            await self._note(awaitable)
            return
        with self.scope:
            await self._note(awaitable)

    async def _note(self, awaitable):
        try:
            await awaitable
            self.end = "a result"
        except asyncio.CancelledError:
            self.end = "CancelledError"
            raise
        except StopAsyncIteration:
            self.end = "the stream's end"
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            self.end = f"{type(error).__name__}: {error}"

    def leave(self):
        if self.scope is None:
            self.task.cancel()
        else:
            self.scope.cancel()


async def settle(stage, work, kind):
    """Whether all of it comes to be closed."""
    return await stage.until(lambda: set(CLOSED.get(kind, [])) <= set(work.closed), stage.soon_s / 3)


@on_a_loop
async def close_between_two_pieces(stage, kind, needed):
    """Reads two pieces and calls aclose: what is closed when that returns, what comes afterwards."""
    work = Work(stage, kind)
    stream = await stage.begun(work, 2)
    told = await stage.within(stream.aclose())
    at_once = list(work.closed)
    await stage.until(lambda: set(needed) <= set(work.closed), stage.soon_s / 3)
    closed, steps = list(work.closed), work.steps
    again = await stage.within(stream.aclose())
    afterwards = await stage.read(stream, most=1)
    await stage.within(stream.aclose())
    return {
        "told": told,
        "at once": at_once,
        "closed": closed,
        "steps": steps,
        "again": again,
        "afterwards": afterwards,
        "closed at last": work.closed,
        "steps at last": work.steps,
    }


@on_a_loop
async def close_with_a_long_finally(stage, kind):
    """The finally takes its time: whether aclose had returned before it had run."""
    work = Work(stage, kind, held_finally=True)
    stream = await stage.begun(work, 2)
    seen = {}

    async def close():
        await stream.aclose()
        seen["closed"] = list(work.closed)

    task = asyncio.ensure_future(close())
    stage.kept.append(task)
    await stage.until(lambda: work.finally_held.entered or task.done(), stage.soon_s / 3)
    await stage.a_while()
    work.finally_held.go.set()
    told = await stage.within(task)
    return {"told": told, "closed": seen.get("closed")}


@on_a_loop
async def leave_a_held_step(stage, kind, scope):
    """Cancels a reader who waits for the third step: whether it was gone while that was held, and
    what happened to what run gave."""
    work = Work(stage, kind, hold=3)
    stream = await stage.begun(work, 2)
    leaver = Leaver(stage, stream.__anext__(), scope)
    await stage.until(lambda: work.held.entered or leaver.task.done())
    leaver.leave()
    gone = await stage.until(leaver.task.done)
    await stage.a_while()
    closed_early = list(work.closed)
    work.held.go.set()
    await settle(stage, work, kind)
    steps, closed = work.steps, list(work.closed)
    afterwards = await stage.read(stream, most=1)
    again = await stage.within(stream.aclose())
    return {
        "gone": gone,
        "end": leaver.end,
        "on the loop": work.held.on_the_loop,
        "closed early": closed_early,
        "closed": closed,
        "steps": steps,
        "afterwards": afterwards,
        "steps at last": work.steps,
        "again": again,
    }


@on_a_loop
async def leave_a_held_finally(stage, scope):
    """Cancels a reader of a def generator, whose finally is then held; whether it was gone."""
    work = Work(stage, "def generator", hold=3, held_finally=True)
    stream = await stage.begun(work, 2)
    leaver = Leaver(stage, stream.__anext__(), scope)
    await stage.until(lambda: work.held.entered or leaver.task.done())
    leaver.leave()
    work.held.go.set()
    gone = await stage.until(leaver.task.done)
    work.finally_held.go.set()
    await stage.until(lambda: work.closed, stage.soon_s / 3)
    return {"gone": gone, "end": leaver.end, "closed": work.closed}


def held_at_two(held, asynchronous):
    """A post_process that is at work on the second piece until it is let go, or cancelled."""

    def hold(self, inference_result):
        if inference_result == 2:
            held()
        return inference_result

    async def wait(self, inference_result):
        if inference_result == 2:
            held.entered = True
            await asyncio.Event().wait()
        return inference_result

    return wait if asynchronous else hold


@on_a_loop
async def leave_in_post_process_before_a_held_finally(stage, asynchronous, scope):
    """Cancels a reader of a def generator while post_process works on the second piece; its `finally` is then
    held; whether the reader was gone."""
    held, work = Held(stage), Work(stage, "def generator", held_finally=True)
    stream = await stage.begun(work, 1, held_at_two(held, asynchronous))
    leaver = Leaver(stage, stream.__anext__(), scope)
    await stage.until(lambda: held.entered or leaver.task.done())
    leaver.leave()
    held.go.set()
    gone = await stage.until(leaver.task.done)
    work.finally_held.go.set()
    await stage.until(lambda: work.closed, stage.soon_s / 3)
    return {"gone": gone, "end": leaver.end, "on the loop": held.on_the_loop}


@on_a_loop
async def leave_in_post_process(stage, kind, asynchronous, scope):
    """Cancels a reader while post_process works on the second piece."""
    held, work = Held(stage), Work(stage, kind)
    stream = await stage.begun(work, 1, held_at_two(held, asynchronous))
    leaver = Leaver(stage, stream.__anext__(), scope)
    await stage.until(lambda: held.entered or leaver.task.done())
    leaver.leave()
    gone = await stage.until(leaver.task.done)
    held.go.set()
    await settle(stage, work, kind)
    afterwards = await stage.read(stream, most=1)
    told = {"gone": gone, "end": leaver.end, "closed": list(work.closed), "steps": work.steps}
    return {**told, "afterwards": afterwards}


@on_a_loop
async def close_in_a_cancelled_scope(stage, kind):
    """A reader is cancelled by anyio between two pieces and calls aclose in its `finally`."""
    work = Work(stage, kind)
    stream = await stage.begun(work, 2)

    async def between_two_pieces():
        try:
            await asyncio.Event().wait()
        finally:
            await stream.aclose()

    leaver = Leaver(stage, between_two_pieces(), scope=True)
    await stage.a_while()
    leaver.leave()
    gone = await stage.until(leaver.task.done)
    await settle(stage, work, kind)
    return {"gone": gone, "end": leaver.end, "closed": work.closed, "steps": work.steps}


@on_a_loop
async def many_actions(stage):
    """64 at once, all of whose actions are def."""

    class Handler(stage.answer.RequestHandler):
        def pre_process(self, request_body):
            return request_body + 1

        def run(self, processed_input):
            return processed_input * 2

        def post_process(self, inference_result):
            return inference_result - 2

    tasks = [asyncio.ensure_future(stage.call(Handler(None), number)) for number in range(MANY)]
    await all_done(stage, tasks)
    return [stage.outcome(task) if task.done() else {"hangs": True} for task in tasks]


async def all_done(stage, tasks):
    """Waits until all are, or until nothing has moved for a while."""
    seen, end = None, 0.0
    while (done := sum(task.done() for task in tasks)) < len(tasks):
        if done != seen:
            seen, end = done, time.monotonic() + stage.soon_s
        if time.monotonic() > end:
            return
        await asyncio.wait(tasks, timeout=0.01)
        Stage.moves += 1


@on_a_loop
async def many_streams(stage, in_step):
    """64 streams, all begun: read piece by piece in turn, or each to its end, the last one first."""
    works = [Work(stage, "def generator", pieces=2) for _ in range(MANY)]
    streams = [await stage.stream(handler_of(stage, work)) for work in works]
    read = [[] for _ in streams]
    failed = []

    async def one(number):
        try:
            read[number].append(stage.inside.plain(await streams[number].__anext__()))
        except StopAsyncIteration:
            read[number].append("end")
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            failed.append(f"{type(error).__name__}: {error}")

    async def to_the_end(number):
        while "end" not in read[number] and not failed:
            await one(number)

    for _ in range(3 if in_step else 1):
        tasks = [asyncio.ensure_future(one(number)) for number in range(MANY)]
        await all_done(stage, tasks)
        if not all(task.done() for task in tasks):
            return {"finished": sum("end" in pieces for pieces in read), "hangs": True}
    if not in_step:
        for number in reversed(range(MANY)):
            task = asyncio.ensure_future(to_the_end(number))
            await all_done(stage, [task])
            if not task.done():
                return {"finished": sum("end" in pieces for pieces in read), "hangs": True}
    wrong = [pieces for pieces in read if pieces != [1, 2, "end"]]
    return {"finished": MANY - len(wrong), "hangs": False, "failed": failed[:1], "wrong": wrong[:1]}


# what the tests share


def play(room, scene, **arguments):
    """What the scene gives; None if it could not begin, which another test is about.

    Raises:
        Hung: the event loop stood still.
    """
    told = room.play(scene, soon_s=0.25 * room.limit_s, **arguments)
    if "blocked" in told:
        raise room.hung(
            "the event loop is blocked: something in process waits without `await`, or never ends",
        )
    return told["result"]


def said(told):
    """What came of a call, in words."""
    if told is None or isinstance(told, str):
        words = {None: "no error", "end": "a normal end, without an error", "hangs": "nothing: it hangs"}
        return words.get(told, told)
    if "hangs" in told:
        return "nothing: it hangs"
    if "raised" in told:
        return f"{told['raised']}: {told['message']}".rstrip(": ")
    return f"{told['value']!r}"


def where(told):
    return told.get("where") if isinstance(told, dict) else None


def shown(note):
    """What a reader has got, in words."""
    end = (
        {"end": "the end", None: "the test stopped reading"}.get(note["end"])
        if not isinstance(note["end"], dict)
        else None
    )
    return f"pieces {note['pieces']}, then {end or said(note['end'])}"


def settled(room, told, mistake, **facts):
    """Requires that a call came to an end without an error."""
    if "hangs" in told:
        raise room.hung(mistake, **facts)
    if "raised" in told:
        fail(mistake, got=said(told), where=told["where"], **facts)


def as_written(kind):
    """A kind of what run gives, as a learner would say it."""
    return {
        "def generator": "a def generator",
        "async generator": "an async generator",
        "object": "an object with __aiter__, __anext__ and aclose",
        "object with an iterator": "an object with __aiter__ and aclose, whose iterator has aclose too",
        "object with close": "an object with __aiter__, __anext__ and close",
        "object with async close": "an object with __aiter__, __anext__ and an async close",
        "object with an async generator": "an object whose __aiter__ returns an async generator",
    }[kind]


def require_closed(room, closed, needed, when, sent):
    """Requires that all of it has been closed."""
    missing = [each for each in needed if each not in closed]
    if not missing:
        return
    mistake = LEFT_OPEN.format(when)
    if "object with __aiter__, __anext__ and aclose" in sent:
        mistake = f"the object from run is not closed when {when}: its aclose is never called"
    elif needed == ["the iterator", "the object"]:
        if "the object" in closed:
            mistake = f"the iterator from __aiter__ is not closed when {when}"
        elif "the iterator" in closed:
            mistake = f"the object from run is not closed when {when}: only its iterator is"
    elif needed == ["the object"]:
        mistake = f"an object without aclose is not closed with its close() when {when}"
        if "async" in sent:
            mistake = f"an `async def close` is not awaited when {when}"
    elif "generator already executing" in room.output():
        mistake = (
            f"the generator is closed in the middle of a step when {when}: that raises ValueError, and"
            " its `finally` never runs"
        )
    fail(
        mistake,
        sent=sent,
        expected=all_closed(needed),
        got=f"only {closed[0]} was closed" if closed else "nothing was closed",
    )


def all_closed(needed):
    """What has to be closed, in words."""
    if needed == ["its `finally`"]:
        return "its `finally` runs"
    return "the object is closed" if needed == ["the object"] else "the iterator and the object are closed"


# the tests


def test_the_base_classes_do_nothing_by_themselves(shared_room):
    found = play(shared_room, base_classes)
    require(
        found["nothing"] == [None, None],
        "ConfigHandler's initialize or close does not return None: by default, both do nothing",
        got=found["nothing"],
    )
    require(found["config"], "RequestHandler(config) does not store config as self.config")
    for name in ("pre_process", "post_process"):
        require(found[name], f"RequestHandler.{name} does not return what it is given")
    told = found["run"]
    require(
        told.get("raised") == "NotImplementedError",
        "RequestHandler.run does not raise NotImplementedError: each service writes its own `run`",
        sent="RequestHandler(config).run(body)",
        expected="NotImplementedError",
        got=said(told),
        where=told.get("where"),
    )


def test_the_actions_run_once_each_in_order(shared_room):
    names = ("pre_process", "run", "post_process")
    for count in range(4):
        for asynchronous in itertools.combinations(names, count):
            told = play(shared_room, all_actions, asynchronous=asynchronous)
            sent = ", ".join(f"{'async def' if name in asynchronous else 'def'} {name}" for name in names)
            if "`await` cannot take that" in told.get("message", ""):
                mistake = "process cannot be awaited: it must be an `async def` without `yield`"
                fail(mistake, sent="await process(handler, body)", got=told["message"])
            settled(shared_room, told, "process never returns", sent=sent)
            values = [argument for _, argument in told["calls"]] + [told["value"]]
            for value in values:
                if isinstance(value, dict) and value.get("type") == "coroutine":
                    fail("an `async def` action is not awaited: a coroutine is passed on", sent=sent)
            calls = [["pre_process", 5], ["run", 51], ["post_process", 512]]
            got = "; ".join(f"{name}({argument!r})" for name, argument in told["calls"])
            order = [name for name, _ in told["calls"]]
            mistake = "an action does not get what the previous action returned"
            if sorted(order) == sorted(names) and order != list(names):
                mistake = "the actions are called in the wrong order"
            elif len(set(order)) < len(order):
                mistake = "an action is called more than once"
            elif order != list(names):
                mistake = f"{next(name for name in names if name not in order)} is not called"
            expected = "; ".join(f"{name}({argument!r})" for name, argument in calls)
            require(told["calls"] == calls, mistake, sent=sent, expected=expected, got=got)
            require(
                told["value"] == 5123,
                "process does not return what post_process returned",
                sent=sent,
                expected="5123",
                got=repr(told["value"]),
            )
    for name in ("None", "0", "an empty list"):
        told = play(shared_room, one_result, name=name, asynchronous=False)
        require(
            told.get("passed_on", True) or bool(told["raised"]),
            "an action does not get what the previous action returned",
            sent=f"def pre_process that returns {name}",
            expected=f"run is called with {name}",
            got="run was called with something else",
        )


def test_lists_and_strings_are_results(shared_room):
    for name in RESULTS:
        for asynchronous in (False, True):
            told = play(shared_room, one_result, name=name, asynchronous=asynchronous)
            sent = f"{'async def' if asynchronous else 'def'} run that returns {name}"
            if "hangs" in told:
                raise shared_room.hung("process hangs when run returns a result", sent=sent)
            mistake = f"{name} is mistaken for a stream: only generators and objects with __aiter__ are streams"
            expected = "post_process is called once, with what run returned"
            if told["raised"]:
                fail(mistake, sent=sent, expected=expected, got=said(told["raised"]), where=told["raised"]["where"])
            if not told["same"] and told["returned"] in ("async_generator", "generator"):
                a_stream = "a generator" if told["returned"] == "generator" else "an async generator"
                fail(mistake, sent=sent, expected=expected, got=f"process returned {a_stream}")
            if not told["same"] and not told["given"]:
                mistake = f"when run returns {name}, post_process is not called"
            got = f"post_process was called with: {', '.join(told['given'])}" if told["given"] else "it was not called"
            require(told["same"], mistake, sent=sent, expected=expected, got=got)
            require(
                told["out"] == "the result",
                "process does not return what post_process returned",
                sent=sent,
                got=told["returned"],
            )


def test_a_def_action_never_keeps_the_loop_waiting(shared_room):
    for name in ("pre_process", "run", "post_process"):
        told = play(shared_room, held_action, name=name)
        sent = f"def {name}, which takes a long time"
        require(
            not told["on the loop"],
            f"a def {name} runs on the event loop: while it runs, everything else waits",
            sent=sent,
            expected="it runs in a thread, and process awaits it",
            got="it ran in the event loop's own thread",
        )
        settled(shared_room, told["told"], f"process never returns with a def {name}", sent=sent)
    for kind in ("def generator", "async generator"):
        require(
            not play(shared_room, held_post_process_of_a_piece, kind=kind),
            "a def post_process runs on the event loop: while it runs, everything else waits",
            sent=f"def post_process, which takes a long time; run returns {as_written(kind)}",
            expected="it runs in a thread, and the reader awaits it",
            got="it ran in the event loop's own thread",
        )


def test_async_actions_run_on_the_loop(shared_room):
    told = play(shared_room, where_async_actions_run)
    settled(shared_room, told, "process never returns", sent="three async def actions")
    for name, on_the_loop in told["found"].items():
        require(
            on_the_loop,
            f"an async def {name} does not run on the caller's event loop",
            expected="it is awaited on the event loop that process runs on",
            got="it ran on another loop: asyncio.run in a thread, perhaps",
        )


def test_context_variables_are_seen_in_every_action(shared_room):
    for asynchronous, stream in ((False, False), (True, False), (False, True), (True, True)):
        told = play(shared_room, context_variables, asynchronous=asynchronous, stream=stream)
        kind = "async def" if asynchronous else "def"
        sent = f"all three actions are {kind}{', and run returns a generator' if stream else ''}"
        settled(shared_room, told, "the actions never finish", sent=sent)
        for what, value in told["found"]:
            require(
                value == "set",
                f"a context variable is lost in {what}: a thread starts without the caller's context",
                sent=f"a context variable is set before process is called; {sent}",
                expected="'set': asyncio.to_thread carries context variables along, and so does copy_context().run",
                got=repr(value),
            )


def test_what_run_gives_decides_about_a_stream(shared_room):
    for note in play(shared_room, streams):
        sent, facts = note["way"], {"expected": "an async iterator that yields 1, 2 and 3"}
        if note["type"] is None:
            if note["end"] == "hangs":
                raise shared_room.hung("process hangs when run returns a stream", sent=sent, **facts)
            mistake = "process fails when run returns a stream"
            fail(mistake, sent=sent, got=said(note["end"]), where=where(note["end"]), **facts)
        if note["lacks"]:
            mistake = "what process returns for a stream is not an async iterator with aclose"
            if note["type"] in ("generator", "coroutine", "Thing", "BareIterator", "ThingWithClose"):
                mistake = "a stream is not recognised: look at what run returns, not at how run is written"
            got = f"{note['type']}, which has no {' and no '.join(note['lacks'])}"
            fail(mistake, sent=sent, got=got, **facts)
        if note["end"] == "hangs":
            raise shared_room.hung("reading a stream hangs", sent=sent, got=shown(note), **facts)
        require(
            note["end"] == "end" and note["pieces"] == [1, 2, 3],
            "reading a stream fails"
            if isinstance(note["end"], dict)
            else "a stream does not yield the pieces that run yielded",
            sent=sent,
            got=shown(note),
            where=where(note["end"]),
            **facts,
        )


def test_each_piece_goes_through_post_process(shared_room):
    for kind in KINDS:
        for asynchronous in (False, True):
            note = play(shared_room, any_pieces, kind=kind, asynchronous=asynchronous)
            way = "async def" if asynchronous else "def"
            facts = {"sent": f"{as_written(kind)} of {ANY_PIECES}, {way} post_process"}
            facts |= {"expected": "each piece as post_process returns it", "got": shown(note)}
            if note["end"] == "hangs":
                raise shared_room.hung("reading a stream hangs", **facts)
            pieces = note["pieces"]
            expected = [None if piece == "text" else ["done", piece] for piece in ANY_PIECES]
            mistake = "a stream does not yield the pieces that run yielded"
            if any(isinstance(piece, dict) and piece.get("type") == "coroutine" for piece in pieces):
                mistake = "an `async def` post_process is not awaited: the pieces are coroutines"
            elif note["streams"]:
                mistake = "post_process gets the whole stream: it should get each piece"
            elif pieces == ANY_PIECES:
                mistake = "the pieces of a stream do not go through post_process"
            elif isinstance(note["end"], dict):
                mistake = "reading a stream fails"
            elif len(pieces) < len(expected) and all(piece in expected for piece in pieces):
                mistake = "pieces that are None or empty are lost, or end the stream"
            elif sorted(map(str, pieces)) == sorted(map(str, expected)):
                mistake = "the pieces come out in the wrong order"
            holds = pieces == expected and note["end"] == "end"
            require(holds, mistake, where=where(note["end"]), **facts)


def test_a_piece_comes_out_as_soon_as_it_is_there(shared_room):
    for kind in KINDS:
        early = play(shared_room, pieces_before_a_held_step, kind=kind)
        if early["pieces"] == [1, 2]:
            continue
        facts = {"sent": f"{as_written(kind)}, paused before its third piece; the reader asks for two"}
        facts |= {"expected": "1 and 2 come out during the pause", "got": shown(early)}
        if isinstance(early["end"], dict):
            fail("reading a stream fails", where=where(early["end"]), **facts)
        raise shared_room.hung("pieces wait for later ones: the stream is buffered or delayed", **facts)


def test_run_is_asked_for_a_piece_only_when_the_reader_asks(shared_room):
    for kind in KINDS:
        steps = play(shared_room, steps_that_nobody_asked_for, kind=kind)
        if steps is None:
            continue
        require(
            steps == [1, 2, 3],
            "run is asked for pieces that the reader has not asked for",
            sent=f"{as_written(kind)}; the reader takes three pieces, with a pause after each",
            expected="at the three pauses, run has yielded 1, 2 and 3 pieces",
            got=", ".join(map(str, steps)),
        )


def test_a_def_generator_never_keeps_the_loop_waiting(shared_room):
    for way in ("def run with yield", "def run that returns a generator", "async def run that returns a generator"):
        told = play(shared_room, held_step, way=way)
        mistake = "a def generator runs on the event loop: while it produces a piece, everything else waits"
        if way.startswith("async"):
            mistake = "a def generator that an `async def run` returned runs on the event loop: everything else waits"
        require(
            not told["on the loop"],
            mistake,
            sent=f"{way}, whose second piece takes a long time",
            expected="each `next` runs in a thread, and the reader awaits it",
            got="it ran in the event loop's own thread",
        )


def test_a_stream_is_read_in_scopes_and_tasks(shared_room):
    for kind in KINDS:
        note = play(shared_room, read_in_other_scopes_and_tasks, kind=kind)
        if note is None:
            continue
        holds = note["pieces"] == [1, 2, 3, 4, 5, 6] and note["end"] == "end"
        facts = {"got": shown(note), "where": where(note["end"])}
        sent = (
            f"{as_written(kind)}; one anyio scope awaits process and reads the first piece, another task reads the rest"
        )
        mistake = "a stream cannot be continued in another task or another anyio scope"
        if note["end"] == "hangs":
            raise shared_room.hung(mistake, sent=sent, got=facts["got"])
        require(holds, mistake, sent=sent, expected="all six pieces arrive", **facts)


def test_an_error_reaches_the_caller(shared_room):
    for name in ("pre_process", "run", "post_process"):
        for asynchronous in (False, True):
            told = play(shared_room, failing_action, name=name, asynchronous=asynchronous)
            sent = f"{'async def' if asynchronous else 'def'} {name} that raises Boom"
            require_boom(shared_room, told, "no such thing (7)", sent)


def require_boom(room, told, message, sent):
    """Requires that what came is the action's own error."""
    facts = {"sent": sent, "expected": f"Boom: {message}", "got": said(told)}
    if told == "hangs" or (isinstance(told, dict) and "hangs" in told):
        raise room.hung("an error in an action never reaches the caller: it hangs", **facts)
    if not isinstance(told, dict) or "raised" not in told:
        fail("an error in an action is swallowed", **facts)
    mistake = "an error in an action arrives as a different type"
    require(told["raised"] == "Boom", mistake, where=told["where"], **facts)
    require(told["message"] == message, "an error in an action loses its message", **facts)


def test_an_error_in_a_stream_reaches_the_reader(shared_room):
    for kind in KINDS:
        note = play(shared_room, failing_step, kind=kind)
        sent = f"{as_written(kind)} that raises Boom at its third piece"
        require_boom(shared_room, note["end"], "the step fails (3)", sent)
        require(
            note["pieces"] == [1, 2],
            "the pieces before an error are lost",
            sent=sent,
            expected="1 and 2, then the error",
            got=shown(note),
        )


def test_a_cancelled_async_action_is_cancelled(shared_room):
    for name in ("pre_process", "run", "post_process"):
        for scope in (False, True):
            told = play(shared_room, cancelled_action, name=name, asynchronous=True, scope=scope)
            sent = f"process awaits an async def {name}, and {by(scope)}"
            require_gone(shared_room, told, sent)
            require(
                told["saw"] != [],
                "an async def action keeps running when process is cancelled",
                sent=sent,
                expected="CancelledError at the action's `await`",
                got="the action was not cancelled",
            )


def by(scope, who="it"):
    whose = "its" if who == "it" else f"{who}'s"
    return f"an anyio scope cancels {who}, again and again" if scope else f"{whose} task is cancelled"


def require_gone(room, told, sent):
    """Requires that a cancelled caller was let go, with CancelledError, and no action ran after."""
    if not told["gone"]:
        raise room.hung(
            "a cancelled caller is not released: it waits for the action in progress",
            sent=sent,
            expected="the caller is released at once",
        )
    mistake = "cancellation is swallowed: let CancelledError through"
    if "already executing" in str(told["end"]):
        mistake = "the generator is closed in the middle of a step: that raises ValueError"
    require(
        told["end"] == "CancelledError",
        mistake,
        sent=sent,
        expected="CancelledError",
        got=told["end"],
    )
    require(
        told.get("after", []) == [],
        "after cancellation, the next action is called",
        sent=sent,
        expected="no further action runs",
        got=told.get("after"),
    )


def test_a_cancelled_caller_does_not_wait_for_a_def_action(shared_room):
    for name in ("pre_process", "run", "post_process"):
        for scope in (False, True):
            told = play(shared_room, cancelled_action, name=name, asynchronous=False, scope=scope)
            if not told["on the loop"]:  # that is another test's concern
                require_gone(shared_room, told, f"process awaits a def {name}, and {by(scope)}")


def test_aclose_closes_what_run_gave(shared_room):
    for kind in KINDS:
        require_close(shared_room, kind, CLOSED[kind])


def require_close(room, kind, needed):
    """Requires that aclose between two pieces closes it before it returns."""
    told = play(room, close_between_two_pieces, kind=kind, needed=needed)
    if told is None:
        return
    sent = f"run returns {as_written(kind)}; aclose() after two pieces"
    settled(room, told["told"], "aclose() hangs" if "hangs" in told["told"] else "aclose() raises", sent=sent)
    require_closed(room, told["closed"], needed, "the reader calls aclose()", sent)
    require(
        set(needed) <= set(told["at once"]),
        "aclose() returns before run's stream is closed",
        sent=sent,
        expected=f"{all_closed(needed)} before aclose() returns",
        got=f"only {told['at once'][0]} was closed" if told["at once"] else "nothing was closed",
    )
    require(
        told["steps"] == 2,
        "after aclose(), run takes further steps",
        sent=sent,
        expected="2 steps",
        got=f"{told['steps']} steps",
    )


def test_an_object_with_aiter_is_closed_however_it_can_be(shared_room):
    require_close(shared_room, "object with close", ["the object"])
    require_close(shared_room, "object with async close", ["the object"])
    require_close(shared_room, "object with an async generator", ["its `finally`"])


def test_aclose_waits_for_the_finally(shared_room):
    for kind in ("def generator", "async generator"):
        told = play(shared_room, close_with_a_long_finally, kind=kind)
        if told is None:
            continue
        sent = f"{as_written(kind)} whose `finally` takes a while; aclose() after two pieces"
        mistake = "aclose() hangs" if "hangs" in told["told"] else "aclose() raises"
        settled(shared_room, told["told"], mistake, sent=sent)
        require(
            told["closed"] == ["its `finally`"],
            "aclose() returns before the `finally` of run's stream has finished",
            sent=sent,
            expected="the `finally` finishes first, and then aclose() returns",
            got="aclose() returned before the `finally` had finished",
        )


def test_after_aclose_the_stream_is_at_its_end(shared_room):
    for kind in KINDS:
        told = play(shared_room, close_between_two_pieces, kind=kind, needed=CLOSED[kind])
        if told is None:
            continue
        sent = f"run returns {as_written(kind)}; aclose() after two pieces, then again"
        again = told["again"]
        mistake = "a second aclose() hangs" if "hangs" in again else "a second aclose() raises"
        settled(shared_room, again, mistake, sent=sent)
        require(
            len(told["closed at last"]) == len(told["closed"]),
            "a second aclose() closes run's stream again",
            sent=sent,
            expected="the second aclose() does nothing",
            got=f"closed again: {', '.join(told['closed at last'][len(told['closed']) :])}",
        )
        sent = f"run returns {as_written(kind)}; aclose() after two pieces, then __anext__()"
        require_at_the_end(shared_room, told, sent)


def require_at_the_end(room, told, sent):
    """Requires that `__anext__` ends the iteration after the reader has left."""
    note = told["afterwards"]
    facts = {"sent": sent, "expected": "StopAsyncIteration, and no further step", "got": shown(note)}
    mistake = "a stream does not end after its reader leaves: `__anext__`"
    if note["end"] == "hangs":
        raise room.hung(f"{mistake} hangs", **facts)
    if isinstance(note["end"], dict):
        fail(f"{mistake} raises {note['end']['raised']}", where=where(note["end"]), **facts)
    require(note["pieces"] == [], f"{mistake} returns one more piece", **facts)


def test_a_cancelled_reader_leaves_a_def_generator_at_once(shared_room):
    for scope in (False, True):
        told = play(shared_room, leave_a_held_step, kind="def generator", scope=scope)
        if told is None or told["on the loop"]:
            continue  # that is another test's concern
        sent = f"a def generator paused in its third step; the reader waits, and {by(scope)}"
        if not told["gone"]:
            mistake = "a cancelled reader is not released: it waits for the step in progress"
            raise shared_room.hung(mistake, sent=sent, expected="the reader is released at once")
        require_gone(shared_room, told, sent)
        told = play(shared_room, leave_a_held_finally, scope=scope)
        sent = f"a def generator whose `finally` takes a while; the reader waits, and {by(scope)}"
        if not told["gone"]:
            mistake = "a cancelled reader is not released: it waits for the generator's `finally`"
            raise shared_room.hung(mistake, sent=sent, expected="the reader is released at once")
        require_gone(shared_room, told, sent)
    for asynchronous, scope in ((False, False), (True, False), (True, True)):
        arguments = {"asynchronous": asynchronous, "scope": scope}
        told = play(shared_room, leave_in_post_process_before_a_held_finally, **arguments)
        if told is None or told["on the loop"]:
            continue
        way, how = "async def" if asynchronous else "def", by(scope, "the reader")
        sent = f"a def generator whose `finally` takes a while; {way} post_process is running, and {how}"
        if not told["gone"]:
            mistake = (
                "a reader cancelled while post_process is running is not released: it waits for a generator's `finally`"
            )
            raise shared_room.hung(mistake, sent=sent, expected="the reader is released at once")


def test_a_cancelled_reader_closes_a_def_generator(shared_room):
    for scope in (False, True):
        told = play(shared_room, leave_a_held_step, kind="def generator", scope=scope)
        if told is None or told["on the loop"]:
            continue
        sent = f"a def generator in its third step; the reader waits, and {by(scope)}"
        require_left(shared_room, told, "def generator", sent, steps=3)


def require_left(room, told, kind, sent, steps, when=None):
    """Requires that it is closed after a reader was cancelled, and stands at its end."""
    if "already executing" in str(told["end"]):
        mistake = "the generator is closed in the middle of a step: that raises ValueError"
        fail(mistake, sent=sent, expected="CancelledError, and the generator is closed after its step", got=told["end"])
    when = when or "the reader is cancelled while it waits"
    if "again and again" in sent:
        when += ", again and again"
    require_closed(room, told["closed"], CLOSED[kind], when, sent)
    taken = max(told["steps"], told.get("steps at last", 0))
    require(
        taken == steps,
        "after the reader has left, run takes further steps",
        sent=sent,
        expected=f"{steps} steps",
        got=f"{taken} steps",
    )
    require_at_the_end(room, told, f"{sent}; then __anext__()")
    if "again" in told:
        mistake = (
            "aclose() after cancellation hangs" if "hangs" in told["again"] else "aclose() after cancellation raises"
        )
        settled(room, told["again"], mistake, sent=sent)


def test_a_cancelled_reader_closes_an_async_stream(shared_room):
    for kind in KINDS[1:]:
        for scope in (False, True):
            told = play(shared_room, leave_a_held_step, kind=kind, scope=scope)
            if told is None:
                continue
            sent = f"run returns {as_written(kind)}; the reader waits for the third piece, and {by(scope)}"
            if not told["gone"]:
                mistake = "a reader that is cancelled while it waits for a piece is not released"
                raise shared_room.hung(mistake, sent=sent)
            require_left(shared_room, told, kind, sent, steps=3)


def test_a_reader_cancelled_in_post_process_closes_too(shared_room):
    for kind in KINDS:
        for asynchronous, scope in ((False, False), (True, False), (True, True)):
            arguments = {"kind": kind, "asynchronous": asynchronous, "scope": scope}
            told = play(shared_room, leave_in_post_process, **arguments)
            way = "async def" if asynchronous else "def"
            sent = f"run returns {as_written(kind)}; {way} post_process is running, and {by(scope, 'the reader')}"
            if told and told["gone"] and told["end"] == "CancelledError":  # else another test's concern
                when = "the reader is cancelled while post_process is running"
                require_left(shared_room, told, kind, sent, steps=2, when=when)


def test_aclose_in_a_cancelled_scope_closes_too(shared_room):
    for kind in KINDS:
        told = play(shared_room, close_in_a_cancelled_scope, kind=kind)
        if told is None:
            continue
        sent = f"run returns {as_written(kind)}; aclose() is called in the `finally` of a reader that anyio cancels"
        if not told["gone"]:
            raise shared_room.hung("aclose() hangs in a cancelled anyio scope", sent=sent)
        when = "aclose() is called in a cancelled anyio scope"
        require_closed(shared_room, told["closed"], CLOSED[kind], when, sent)


def test_a_failing_post_process_closes_too(shared_room):
    for kind in KINDS:
        for asynchronous in (False, True):
            told = play(shared_room, failing_post_process, kind=kind, asynchronous=asynchronous)
            if told is None:
                continue
            way = "async def" if asynchronous else "def"
            sent = f"run returns {as_written(kind)}; {way} post_process raises Boom at the second piece"
            require_boom(shared_room, told["end"], "post_process fails (2)", sent)
            require_closed(shared_room, told["closed"], CLOSED[kind], "post_process fails", sent)
            require(
                told["steps"] == 2,
                "after post_process has failed, run takes further steps",
                sent=sent,
                expected="2 steps",
                got=f"{told['steps']} steps",
            )
            require_at_the_end(shared_room, told, f"{sent}; then __anext__()")


def test_64_at_once_all_finish(shared_room):
    told = play(shared_room, many_actions)
    hanging = sum("hangs" in each for each in told)
    sent = f"{MANY} calls to process at once, all with def actions; the default pool has {POOL} threads"
    if hanging:
        raise shared_room.hung(f"{MANY} concurrent calls hang", sent=sent, got=f"{MANY - hanging} have finished")
    for number, each in enumerate(told):
        require(
            each.get("value") == 2 * number,
            f"one of {MANY} concurrent calls gets another one's result, or none",
            sent=sent,
            expected=repr(2 * number),
            got=said(each),
            where=each.get("where"),
        )


def test_64_streams_at_once_all_finish(shared_room):
    for in_step in (True, False):
        told = play(shared_room, many_streams, in_step=in_step)
        order = (
            "read in turn, one piece at a time" if in_step else "all started, then read to the end, the last one first"
        )
        sent = f"{MANY} streams of def generators, {order}; the default pool has {POOL} threads"
        if told is None:
            continue
        if told["hangs"]:
            raise shared_room.hung(
                f"{MANY} concurrent streams hang: between pieces, a stream holds on to something"
                " that another one needs, such as a thread from a shared pool or a lock",
                sent=sent,
                expected=f"all {MANY} finish",
                got=f"{told['finished']} have finished, and the rest are stuck",
            )
        require(
            told["finished"] == MANY,
            f"one of {MANY} concurrent streams does not yield the pieces that run yielded",
            sent=sent,
            expected=[1, 2, "end"],
            got=(told["failed"] or told["wrong"])[0] if told["failed"] or told["wrong"] else "nothing",
        )
