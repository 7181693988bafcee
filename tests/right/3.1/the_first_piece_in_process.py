"""process waits for a stream's first piece itself, so that an error before it is raised there."""

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

NOTHING = object()
kept = set()


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


class Thread:
    """One thread, in whose queue calls stand one behind the other."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(max_workers=1)

    def call(self, function, *args):
        return asyncio.get_running_loop().run_in_executor(
            self.pool, copy_context().run, function, *args
        )


async def act(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await Thread().call(action, argument)


class GeneratorSource:
    waits_when_cancelled = False

    def __init__(self, generator):
        self.generator, self.thread = generator, Thread()

    def next(self):
        return self.thread.call(next, self.generator, NOTHING)

    def close(self):
        return self.thread.call(self.generator.close)


class AsyncSource:
    waits_when_cancelled = True

    def __init__(self, thing):
        self.thing, self.iterator = thing, aiter(thing)

    def next(self):
        return anext(self.iterator, NOTHING)

    def close(self):
        return asyncio.ensure_future(self._close())

    async def _close(self):
        things = [self.iterator]
        if self.thing is not self.iterator:
            things.append(self.thing)
        for thing in things:
            for name in ("aclose", "close"):
                if method := getattr(thing, name, None):
                    closed = method()
                    if inspect.isawaitable(closed):
                        await closed
                    break


async def process(handler, request_body):
    result = await act(handler.run, await act(handler.pre_process, request_body))
    if inspect.isgenerator(result):
        source = GeneratorSource(result)
    elif hasattr(result, "__aiter__"):
        source = AsyncSource(result)
    else:
        return await act(handler.post_process, result)
    stream = pieces(handler, source)
    await anext(stream)  # up to its first yield, which is behind the first piece
    return stream


async def pieces(handler, source):
    cancelled = False
    try:
        piece = await source.next()
        if piece is not NOTHING:
            piece = await act(handler.post_process, piece)
        yield
        while piece is not NOTHING:
            yield piece
            piece = await source.next()
            if piece is not NOTHING:
                piece = await act(handler.post_process, piece)
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        closing = source.close()
        kept.add(closing)
        closing.add_done_callback(kept.discard)
        if source.waits_when_cancelled or not cancelled:
            await asyncio.shield(closing)
