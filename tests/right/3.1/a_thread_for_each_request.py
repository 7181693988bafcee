"""One thread for each request: its def actions, the steps of its def generator and the close stand in one queue."""

import asyncio
import contextvars
import inspect
from concurrent.futures import ThreadPoolExecutor

END = object()


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


async def process(handler, request_body):
    request = Request(handler)
    processed = await request.act(handler.pre_process, request_body)
    result = await request.act(handler.run, processed)
    if inspect.isgenerator(result):
        return request.steps(result)
    if hasattr(result, "__aiter__"):
        return request.pieces(result)
    return await request.act(handler.post_process, result)


class Request:
    closings = set()

    def __init__(self, handler):
        self.handler = handler
        self.thread = ThreadPoolExecutor(max_workers=1)

    def submit(self, function, *args):
        return self.thread.submit(contextvars.copy_context().run, function, *args)

    async def act(self, action, argument):
        if inspect.iscoroutinefunction(action):
            return await action(argument)
        return await asyncio.wrap_future(self.submit(action, argument))

    async def steps(self, generator):
        try:
            while (piece := await asyncio.wrap_future(self.submit(next, generator, END))) is not END:
                yield await self.act(self.handler.post_process, piece)
        except asyncio.CancelledError:
            self.submit(generator.close)
            raise
        except BaseException:
            await asyncio.shield(asyncio.wrap_future(self.submit(generator.close)))
            raise

    async def pieces(self, result):
        iterator = aiter(result)
        try:
            async for piece in iterator:
                yield await self.act(self.handler.post_process, piece)
        finally:
            closing = asyncio.create_task(close_all(iterator, result))
            self.closings.add(closing)
            closing.add_done_callback(self.closings.discard)
            await asyncio.shield(closing)


async def close_all(iterator, result):
    for thing in [iterator] if iterator is result else [iterator, result]:
        close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
        closed = close() if close else None
        if inspect.isawaitable(closed):
            await closed
