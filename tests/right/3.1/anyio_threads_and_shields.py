"""anyio's threads without a limit, and its shields around what closes."""

import inspect
import math
import threading

import anyio
from anyio import CapacityLimiter, to_thread


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


async def in_thread(function, *args):
    return await to_thread.run_sync(
        function, *args, abandon_on_cancel=True, limiter=CapacityLimiter(math.inf)
    )


async def act(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await in_thread(action, argument)


async def process(handler, request_body):
    processed = await act(handler.pre_process, request_body)
    result = await act(handler.run, processed)
    if inspect.isgenerator(result):
        result = Stepped(result)
    if hasattr(result, "__aiter__"):
        return Processed(handler, result)
    return await act(handler.post_process, result)


class Stepped:
    """A def generator as an async iterator."""

    def __init__(self, generator):
        self.generator, self.busy = generator, threading.Lock()

    def __aiter__(self):
        return self

    def step(self):
        with self.busy:
            try:
                return True, next(self.generator)
            except StopIteration:
                return False, None

    async def __anext__(self):
        there, piece = await in_thread(self.step)
        if there:
            return piece
        raise StopAsyncIteration

    def shut(self):
        with self.busy:
            self.generator.close()

    def leave(self):
        threading.Thread(target=self.shut).start()

    async def aclose(self):
        await in_thread(self.shut)


class Processed:
    def __init__(self, handler, source):
        self.handler, self.source, self.pieces = handler, source, source.__aiter__()
        self.over = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.over:
            raise StopAsyncIteration
        try:
            return await act(self.handler.post_process, await self.pieces.__anext__())
        except StopAsyncIteration:
            self.over = True
            raise
        except anyio.get_cancelled_exc_class():
            self.over = True
            if isinstance(self.source, Stepped):
                self.source.leave()
            else:
                await self.close()
            raise
        except BaseException:
            self.over = True
            await self.close()
            raise

    async def aclose(self):
        if not self.over:
            self.over = True
            await self.close()

    async def close(self):
        with anyio.CancelScope(shield=True):
            for each in {id(self.pieces): self.pieces, id(self.source): self.source}.values():
                if hasattr(each, "aclose"):
                    await each.aclose()
                elif hasattr(each, "close"):
                    closed = each.close()
                    if inspect.isawaitable(closed):
                        await closed
