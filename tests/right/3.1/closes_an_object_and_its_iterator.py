"""Closes the iterator and then the object, which may be the same one."""

import asyncio
import inspect
import threading
from contextvars import copy_context


class ConfigHandler:
    def initialize(self):
        return None

    def close(self):
        return None


class RequestHandler:
    def __init__(self, config):
        self.config = config

    def pre_process(self, request_body):
        return request_body

    def run(self, processed_input):
        raise NotImplementedError

    def post_process(self, inference_result):
        return inference_result


def in_thread(context, call, *args):
    """A daemon thread for each call."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def done(result, error):
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work():
        try:
            result, error = context.run(call, *args), None
        except BaseException as e:
            result, error = None, e
        try:
            loop.call_soon_threadsafe(done, result, error)
        except RuntimeError:
            pass

    threading.Thread(target=work, daemon=True).start()
    return future


async def act(action, arg):
    if inspect.iscoroutinefunction(action):
        return await action(arg)
    return await in_thread(copy_context(), action, arg)


async def process(handler, request_body):
    given = await act(handler.pre_process, request_body)
    given = await act(handler.run, given)
    if inspect.isgenerator(given):
        return Stream(handler, Steps(given))
    if hasattr(given, "__aiter__"):
        return Stream(handler, given)
    return await act(handler.post_process, given)


class Steps:
    def __init__(self, generator):
        self.generator = generator
        self.lock = threading.Lock()
        self.over = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        END = object()

        def step():
            with self.lock:
                if self.over:
                    return END
                return next(self.generator, END)

        got = await in_thread(copy_context(), step)
        if got is END:
            raise StopAsyncIteration
        return got

    async def aclose(self):
        self.over = True

        def close():
            with self.lock:
                self.generator.close()

        await asyncio.shield(in_thread(copy_context(), close))


class Stream:
    def __init__(self, handler, given):
        self.handler, self.given, self.it, self.over = handler, given, None, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.over:
            raise StopAsyncIteration
        try:
            if self.it is None:
                self.it = aiter(self.given)
            piece = await anext(self.it)
            return await act(self.handler.post_process, piece)
        except StopAsyncIteration:
            self.over = True
            raise
        except asyncio.CancelledError:
            self.over = True
            self.task = asyncio.ensure_future(self.close())
            raise
        except BaseException:
            self.over = True
            await self.close()
            raise

    async def close(self):
        for thing in (self.it, self.given):
            if thing is None:
                continue
            method = getattr(thing, "aclose", None) or getattr(thing, "close", None)
            if method:
                closed = method()
                if inspect.isawaitable(closed):
                    await closed

    async def aclose(self):
        if not self.over:
            self.over = True
            await self.close()
