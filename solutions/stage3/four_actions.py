"""Exercise 3.1: a service in four actions, each a `def` or an `async def`, and what runs them."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

_END = object()
_closings = set()


class ConfigHandler:
    """What a service needs once, however many requests there are: a model, a tokenizer, a pool.

    A subclass overrides what it needs, with a `def` or an `async def`. Here both do nothing.
    """

    def initialize(self):
        """The first action: load it all. A server calls it once, before its first request."""

    def close(self):
        """Give it all back. A server calls it once, after its last request."""


class RequestHandler:
    """What is done with each request: a subclass overrides any of the three actions below.

    Each may be a `def` or an `async def`. Each is called with one argument, which is what the
    action before it returned.

    Example:
        >>> class Shout(RequestHandler):
        ...     def pre_process(self, request_body):
        ...         return request_body["text"]
        ...
        ...     async def run(self, processed_input):
        ...         return processed_input.upper()
        ...
        >>> await process(Shout(ConfigHandler()), {"text": "hello"})
        'HELLO'
    """

    def __init__(self, config):
        """Args: config: what is shared, a `ConfigHandler`; kept as `self.config`."""
        self.config = config

    def pre_process(self, request_body):
        """The request's body as `run` wants it. Here: unchanged."""
        return request_body

    def run(self, processed_input):
        """The work itself. Gives a result, or a stream of pieces.

        Raises:
            NotImplementedError: here; each service writes its own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run(self, processed_input)")

    def post_process(self, inference_result):
        """What `run` gave, or one piece of its stream, as the client wants it. Here: unchanged."""
        return inference_result


async def process(handler, request_body):
    """Run a handler's `pre_process`, `run` and `post_process`, once each and in this order.

    The event loop never waits for a `def` action, however long that takes: it works in a thread.
    An `async def` action runs on the loop. All of them, including those in threads, see the context
    variables that were set before `process` was called, if the task that called it also reads
    the stream. 64 at once all finish, even if the loop's default thread pool has only 6 threads,
    and in whatever order 64 streams are read.

    What `run` gives decides what comes back, whether `run` is a `def`, an `async def` or has a
    `yield` in it: a generator, or anything with `__aiter__`, is a stream. Anything else is a
    result, including a list, a string, or an iterator like the one that `map` gives.

    Args:
        handler: a `RequestHandler`.
        request_body: what `pre_process` is called with.

    Returns:
        For a result: what `post_process` returns. For a stream: an async iterator with `__anext__`
        and `aclose`. It gives each piece, in order, as `post_process` returns it, as soon as it is
        there. `run` is asked for a piece only when the reader asks for one, and the event loop
        never waits for a step of a `def` generator either, whichever way `run` gave it.

    Raises:
        Whatever an action raises, with its type and message, at once. An error of a stream is
        raised where the piece is asked for, or before.

    When `process` is cancelled, so is an `async def` action. A `def` action cannot be: it ends by
    itself, and nobody waits for it.

    The reader of a stream may leave: by `aclose()` between two pieces, or by cancellation while it
    waits for one, which may hit it once or, as in the scopes of anyio under Starlette, again and
    again. Then, and also when `post_process` fails, `run` makes no further step, and what it gave is
    closed by `aclose`, or by `close` if it has no `aclose`; of an object with `__aiter__` the
    iterator is closed, too. So a `finally` in a generator runs: in a `def` generator after the step in
    progress. `aclose()` returns when that is done; a cancelled reader does not wait for a `def`
    generator, nor for its `finally`. Afterwards the stream is at its end, and another `aclose()`
    does nothing.

    Left to you: whether a stream is closed at its natural end, or before its first piece, too;
    whether an error waits for the closing, and what an error in the closing does; for the `finally`
    of a `def` generator its thread, the context variables it sees, and whether it waits for a `def`
    `post_process` in progress; what becomes of an `await` in the `finally` of an `async def` generator
    whose reader is cancelled again and again; and what becomes of a StopIteration,
    StopAsyncIteration, CancelledError, SystemExit or KeyboardInterrupt that an action raises.
    """
    processed_input = await _act(handler.pre_process, request_body)
    inference_result = await _act(handler.run, processed_input)
    if inspect.isgenerator(inference_result) or hasattr(inference_result, "__aiter__"):
        return _stream(handler, inference_result)
    return await _act(handler.post_process, inference_result)


async def _act(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    thread = ThreadPoolExecutor(1)
    try:
        return await _in(thread, action, argument)
    finally:
        thread.shutdown(wait=False)


def _in(thread, call, *args):
    """Starts call(*args) in that thread and in a copy of this context; gives a future of it."""
    return asyncio.get_running_loop().run_in_executor(thread, copy_context().run, call, *args)


async def _stream(handler, inference_result):
    if inspect.isgenerator(inference_result):
        # one thread for all steps and the close: this stands in its queue behind the last step
        thread = ThreadPoolExecutor(1)
        ask = partial(_in, thread, next, inference_result, _END)
        close = partial(_in, thread, inference_result.close)
    else:
        pieces = aiter(inference_result)
        ask = partial(anext, pieces, _END)
        close = partial(_aclose, pieces, inference_result)
    waits = True
    try:
        while (piece := await ask()) is not _END:
            yield await _act(handler.post_process, piece)
    except asyncio.CancelledError:
        waits = False
        raise
    finally:
        # in a task of its own: whatever happens to the reader from now on, it goes on
        closing = asyncio.ensure_future(close())
        _closings.add(closing)
        closing.add_done_callback(_closings.discard)
        if waits:
            await asyncio.shield(closing)


async def _aclose(pieces, inference_result):
    try:
        await _close(pieces)
    finally:
        if inference_result is not pieces:
            await _close(inference_result)


async def _close(thing):
    close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
    closed = close() if close else None
    if inspect.isawaitable(closed):
        await closed
