"""asyncio.to_thread for actions and steps; a lock for each def generator, and a thread that closes it."""

import asyncio
import inspect
import threading

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


async def call(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await asyncio.to_thread(action, argument)


async def process(handler, request_body):
    processed = await call(handler.pre_process, request_body)
    result = await call(handler.run, processed)
    if inspect.isgenerator(result):
        return Stream(handler, Steps(result))
    if hasattr(result, "__aiter__"):
        return Stream(handler, Pieces(result))
    return await call(handler.post_process, result)


class Steps:
    def __init__(self, generator):
        self.generator = generator
        self.lock = threading.Lock()

    async def next(self):
        return await asyncio.to_thread(self.step)

    def step(self):
        with self.lock:
            return next(self.generator, END)

    def shut(self):
        with self.lock:
            self.generator.close()

    def abandon(self):
        threading.Thread(target=self.shut, daemon=True).start()

    async def close(self):
        closing = threading.Thread(target=self.shut, daemon=True)
        closing.start()
        while closing.is_alive():
            await asyncio.sleep(0.001)


class Pieces:
    def __init__(self, thing):
        self.thing = thing
        self.iterator = thing.__aiter__()

    async def next(self):
        try:
            return await self.iterator.__anext__()
        except StopAsyncIteration:
            return END

    def abandon(self):
        task = asyncio.create_task(self.close())
        running.add(task)
        task.add_done_callback(running.discard)

    async def close(self):
        for thing in [self.iterator] if self.iterator is self.thing else [self.iterator, self.thing]:
            if hasattr(thing, "aclose"):
                await thing.aclose()
            elif hasattr(thing, "close"):
                closed = thing.close()
                if inspect.isawaitable(closed):
                    await closed


running = set()


class Stream:
    def __init__(self, handler, source):
        self.handler = handler
        self.source = source
        self.closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.closed:
            raise StopAsyncIteration
        try:
            piece = await self.source.next()
            if piece is not END:
                return await call(self.handler.post_process, piece)
        except BaseException:
            self.closed = True
            self.source.abandon()
            raise
        self.closed = True
        raise StopAsyncIteration

    async def aclose(self):
        if not self.closed:
            self.closed = True
            await self.source.close()
