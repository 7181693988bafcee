"""A thread for each def generator, which waits in a queue to be asked for a piece or to close it."""

import asyncio
import contextvars
import inspect
import queue
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


def in_thread(function, *args):
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    context = contextvars.copy_context()

    def settle(error, value):
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def work():
        try:
            outcome = None, context.run(function, *args)
        except Exception as error:
            outcome = error, None
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:
            pass

    threading.Thread(target=work, daemon=True).start()
    return future


async def act(action, argument):
    if inspect.iscoroutinefunction(action):
        return await action(argument)
    return await in_thread(action, argument)


async def process(handler, request_body):
    processed = await act(handler.pre_process, request_body)
    result = await act(handler.run, processed)
    if inspect.isgenerator(result):
        return with_post_process(handler, FromThread(result))
    if hasattr(result, "__aiter__"):
        return with_post_process(handler, result)
    return await act(handler.post_process, result)


async def with_post_process(handler, source):
    iterator = source.__aiter__()
    try:
        while True:
            try:
                piece = await iterator.__anext__()
            except StopAsyncIteration:
                return
            yield await act(handler.post_process, piece)
    except asyncio.CancelledError:
        background(close(iterator, source))
        raise
    except BaseException:
        await asyncio.shield(background(close(iterator, source)))
        raise


tasks = set()


def background(coroutine):
    task = asyncio.create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def close(iterator, source):
    for each in (iterator, source):
        method = getattr(each, "aclose", None) or getattr(each, "close", None)
        if method is not None:
            closed = method()
            if inspect.isawaitable(closed):
                await closed
        if source is iterator:
            break


class FromThread:
    def __init__(self, generator):
        self.generator = generator
        self.asked = queue.SimpleQueue()
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=contextvars.copy_context().run, args=(self.work,), daemon=True).start()

    def work(self):
        while True:
            what, future = self.asked.get()
            if what == "close":
                try:
                    self.generator.close()
                    self.tell(future, "value", None)
                except Exception as error:
                    self.tell(future, "error", error)
                return
            try:
                self.tell(future, "value", next(self.generator))
            except StopIteration:
                self.tell(future, "end", None)
            except Exception as error:
                self.tell(future, "error", error)

    def tell(self, future, what, value):
        def set():
            if not future.done():
                future.set_result((what, value))

        try:
            self.loop.call_soon_threadsafe(set)
        except RuntimeError:
            pass

    async def ask(self, what):
        future = self.loop.create_future()
        self.asked.put((what, future))
        what, value = await future
        if what == "error":
            raise value
        if what == "end":
            raise StopAsyncIteration
        return value

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await self.ask("next")

    async def aclose(self):
        await self.ask("close")
