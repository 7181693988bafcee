"""One pool of the module's own; a def generator's close is chained to the step in progress."""

import asyncio
import contextvars
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

POOL = ThreadPoolExecutor(200)
DONE = ["done"]


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


def submit(function, *args):
    return POOL.submit(contextvars.copy_context().run, function, *args)


async def run_action(action, value):
    if asyncio.iscoroutinefunction(action):
        return await action(value)
    return await asyncio.wrap_future(submit(action, value))


async def process(handler, request_body):
    value = await run_action(handler.pre_process, request_body)
    value = await run_action(handler.run, value)
    if inspect.isgenerator(value):
        return from_generator(handler, value)
    if hasattr(value, "__aiter__"):
        return from_async(handler, value)
    return await run_action(handler.post_process, value)


async def from_generator(handler, generator):
    step = None
    try:
        while True:
            step = submit(next, generator, DONE)
            piece = await asyncio.shield(asyncio.wrap_future(step))
            if piece is DONE:
                return
            yield await run_action(handler.post_process, piece)
    except asyncio.CancelledError:
        step.add_done_callback(lambda _: POOL.submit(generator.close))
        step = None
        raise
    finally:
        if step is not None and step.done():
            await asyncio.shield(asyncio.wrap_future(submit(generator.close)))


async def from_async(handler, thing):
    async with AsyncExitStack() as stack:
        stack.push_async_callback(shut, thing)
        iterator = aiter(thing)
        if iterator is not thing:
            stack.push_async_callback(shut, iterator)
        while True:
            try:
                piece = await anext(iterator)
            except StopAsyncIteration:
                break
            yield await run_action(handler.post_process, piece)


async def shut(thing):
    if hasattr(thing, "aclose"):
        await asyncio.shield(asyncio.ensure_future(thing.aclose()))
    elif hasattr(thing, "close"):
        closed = thing.close()
        if inspect.isawaitable(closed):
            await asyncio.shield(asyncio.ensure_future(closed))
