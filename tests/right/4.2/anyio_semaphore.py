"""anyio: a Semaphore that hands over, and a cancel scope that ends the waiting."""

from contextlib import asynccontextmanager

import anyio
from starlette.responses import JSONResponse


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app, self.path = app, path
        self.max_waiting = max_waiting
        self.retry_after_s = retry_after_s
        self.places = anyio.Semaphore(max_running, fast_acquire=True)
        self.running = self.waiting = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        try:
            self.places.acquire_nowait()
        except anyio.WouldBlock:
            if self.waiting >= self.max_waiting:
                await self.too_many(scope, receive, send)
                return
            messages = []
            if not await self.wait(receive, messages):
                return
            receive = self.first_of(messages, receive)
        async with self.counted():
            await self.app(scope, receive, send)

    @asynccontextmanager
    async def counted(self):
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.places.release()

    async def wait(self, receive, messages):
        has_place = has_left = False
        self.waiting += 1
        try:
            async with anyio.create_task_group() as group:

                async def read():
                    nonlocal has_left
                    while not has_left:
                        message = await receive()
                        messages.append(message)
                        has_left = message["type"] == "http.disconnect"
                    group.cancel_scope.cancel()

                group.start_soon(read)
                await self.places.acquire()
                has_place = True
                group.cancel_scope.cancel()
        except BaseException:
            if has_place:
                self.places.release()
            raise
        finally:
            self.waiting -= 1
        return has_place

    def first_of(self, messages, receive):
        async def again():
            if messages:
                return messages.pop(0)
            return await receive()

        return again

    async def too_many(self, scope, receive, send):
        content = {"error": {"message": "Overloaded", "type": "overloaded", "param": None, "code": None}}
        response = JSONResponse(content, 503)
        response.headers["Retry-After"] = str(self.retry_after_s)
        await response(scope, receive, send)
