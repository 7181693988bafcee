"""Exercise 3.1: a service in four actions, each a `def` or an `async def`, and the function that runs them."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial

_END = object()
_closings = set()


class ConfigHandler:
    """What all requests to a service share: a model, a tokenizer, a pool.

    A subclass overrides the methods that it needs, with a `def` or an `async def`. By default, both do nothing.
    """

    def initialize(self):
        """The first action: load everything. A server calls it once, before its first request."""

    def close(self):
        """Release everything. A server calls it once, after its last request."""


class RequestHandler:
    """How a service handles each request. A subclass overrides any of the three actions below.

    Each may be a `def` or an `async def`. Each is called with one argument: what the previous action
    returned.

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
        """Store `config`, the shared `ConfigHandler`, as `self.config`."""
        self.config = config

    def pre_process(self, request_body):
        """Turn the request's body into what `run` needs. By default, return it unchanged."""
        return request_body

    def run(self, processed_input):
        """Do the work. Return a result, or a stream of pieces.

        Raises:
            NotImplementedError: by default; each service writes its own `run`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run(self, processed_input)")

    def post_process(self, inference_result):
        """Turn the result, or one piece of the stream, into what the client gets. By default, return it unchanged."""
        return inference_result


async def process(handler, request_body):
    """Run a handler's `pre_process`, `run` and `post_process`, once each and in this order.

    A `def` action runs in a thread: the event loop never waits for it, however long it takes. An
    `async def` action runs on the loop. All of them, including those in threads, see the context
    variables that were set before `process` was called. (For a stream, that holds if the task that
    called `process` is also the one that reads.) If 64 calls are in progress at once, all of them
    finish, even if the loop's default thread pool has only 6 threads. If 64 streams are open at once,
    they can be read in any order.

    What `run` returns decides what `process` returns, whether `run` is a `def`, an `async def` or
    contains a `yield`. A generator, or anything with `__aiter__`, is a stream. Anything else is a
    result, including a list, a string, or an iterator such as a `map`.

    Args:
        handler: a `RequestHandler`.
        request_body: what `pre_process` is called with.

    Returns:
        For a result: what `post_process` returns. For a stream: an async iterator with `__anext__`
        and `aclose`. It yields what `post_process` returns for each piece, in order, as soon as it is
        available. `run` is asked for a piece only when the reader asks for one. The event loop never
        waits for a step of a `def` generator either, no matter what kind of `run` returned it.

    Raises:
        Whatever an action raises, with its type and message, immediately. An error in a stream is
        raised when the reader asks for the piece that fails, or for an earlier one.

    When `process` is cancelled, so is an `async def` action. A `def` action cannot be cancelled: it
    ends by itself, and nothing waits for it.

    The reader of a stream may leave: by calling `aclose()` between two pieces, or by being cancelled
    while it waits for one. It may be cancelled once or repeatedly, as by the anyio scopes that Starlette
    uses. When the reader leaves, and also when `post_process` fails, `run` takes no further step, and
    what it returned is closed with `aclose`, or with `close` if it has no `aclose`. For an object with
    `__aiter__`, the iterator is closed, too. So a `finally` in a generator runs; in a `def` generator,
    it runs after the step in progress. `aclose()` returns when all this is done. A cancelled reader
    waits neither for a `def` generator nor for its `finally`. Afterwards, the stream has ended, and
    another `aclose()` does nothing.

    Left to you:

    - whether a stream is also closed when it ends by itself, or before its first piece;
    - whether an error is raised only after the closing, and what an error during the closing does;
    - in which thread the `finally` of a `def` generator runs, which context variables it sees, and
      whether it waits for a `def` `post_process` in progress;
    - what happens to an `await` in the `finally` of an `async def` generator whose reader is cancelled
      repeatedly;
    - what happens to a StopIteration, StopAsyncIteration, CancelledError, SystemExit or
      KeyboardInterrupt that an action raises.
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
    """Start call(*args) in that thread, in a copy of the current context, and return its future."""
    return asyncio.get_running_loop().run_in_executor(thread, copy_context().run, call, *args)


async def _stream(handler, inference_result):
    if inspect.isgenerator(inference_result):
        # one thread for all steps and the close, which queues up behind the last step
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
        # in a separate task: it goes on, whatever happens to the reader from now on
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
