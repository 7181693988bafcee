"""An async generator is awaited and closed where it stands; a def generator is guarded by an asyncio lock."""

import asyncio
import inspect
import threading


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


async def invoke(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await asyncio.to_thread(action, argument)


async def process(handler, request_body):
    processed = await invoke(handler.pre_process, request_body)
    given = await invoke(handler.run, processed)
    if inspect.isgenerator(given):
        return stepped(handler, given)
    if hasattr(given, "__aiter__"):
        return passed_on(handler, given)
    return await invoke(handler.post_process, given)


async def passed_on(handler, given):
    iterator = given.__aiter__()
    try:
        async for piece in iterator:
            yield await invoke(handler.post_process, piece)
    finally:
        try:
            await close(iterator)
        finally:
            if given is not iterator:
                await close(given)


async def close(thing):
    if hasattr(thing, "aclose"):
        await thing.aclose()
    elif hasattr(thing, "close"):
        closed = thing.close()
        if inspect.isawaitable(closed):
            await closed


async def stepped(handler, generator):
    working, left = threading.Lock(), threading.Event()

    def step():
        with working:
            if left.is_set():
                return None
            for piece in generator:
                return (piece,)
            return None

    def shut():
        with working:
            generator.close()

    try:
        while (found := await asyncio.to_thread(step)) is not None:
            yield await invoke(handler.post_process, found[0])
    except asyncio.CancelledError:
        left.set()
        threading.Thread(target=shut).start()
        raise
    except BaseException:
        left.set()
        closing = asyncio.ensure_future(asyncio.to_thread(shut))
        await asyncio.shield(closing)
        raise
