"""Each stream is read by a task of its own, which is asked for a piece by a queue of futures."""

import asyncio
import inspect
import threading
from contextvars import copy_context


class ConfigHandler:
    def initialize(self):
        pass

    def close(self):
        pass


class RequestHandler:
    def __init__(self, config):
        self.config = config

    def pre_process(self, request_body):
        return request_body

    def run(self, processed_input):
        raise NotImplementedError

    def post_process(self, inference_result):
        return inference_result


def thread_for(function, *args):
    """A thread for one call; a future of it."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def put(method, value):
        if not future.done():
            getattr(future, method)(value)

    def work():
        try:
            told = "set_result", function(*args)
        except BaseException as error:
            told = "set_exception", error
        if not loop.is_closed():
            loop.call_soon_threadsafe(put, *told)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    return future


async def call(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await thread_for(action, argument)


async def process(handler, request_body):
    argument = await call(handler.pre_process, request_body)
    result = await call(handler.run, argument)
    if inspect.isgenerator(result) or hasattr(result, "__aiter__"):
        return Stream(handler, result)
    return await call(handler.post_process, result)


class Stream:
    tasks = set()

    def __init__(self, handler, result):
        self.handler, self.result = handler, result
        self.asked = asyncio.Queue()
        self.over = False
        self.task = asyncio.create_task(self.work())
        self.tasks.add(self.task)
        self.task.add_done_callback(self.tasks.discard)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.over:
            raise StopAsyncIteration
        future = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(future)
        try:
            there, piece = await future
        except BaseException:
            self.leave()
            raise
        if not there:
            self.over = True
            raise StopAsyncIteration
        return piece

    def leave(self):
        if not self.over:
            self.over = True
            self.task.cancel()

    async def aclose(self):
        self.leave()
        await asyncio.wait([self.task])
        if not self.task.cancelled() and self.task.exception():
            raise self.task.exception()

    async def work(self):
        steps = self.steps() if inspect.isgenerator(self.result) else aiter(self.result)
        future = None
        try:
            while True:
                future = await self.asked.get()
                try:
                    piece = await call(self.handler.post_process, await anext(steps))
                except StopAsyncIteration:
                    future.set_result((False, None))
                    return
                if not future.done():
                    future.set_result((True, piece))
        except Exception as error:
            await self.close(steps)
            if future and not future.done():
                future.set_exception(error)
        except asyncio.CancelledError:
            await self.close(steps)

    async def close(self, steps):
        for thing in [steps, self.result][: 1 if steps is self.result else 2]:
            if inspect.isgenerator(thing):
                continue
            if hasattr(thing, "aclose"):
                await thing.aclose()
            elif hasattr(thing, "close"):
                closed = thing.close()
                if inspect.isawaitable(closed):
                    await closed

    async def steps(self):
        end = object()
        step = None
        try:
            while True:
                step = thread_for(next, self.result, end)
                piece = await asyncio.shield(step)
                if piece is end:
                    return
                yield piece
        finally:
            if step is not None:
                await asyncio.wait([step])
            await thread_for(self.result.close)
