"""A gate apart from ASGI; the body that came meanwhile is handed on as one message."""

import asyncio
import collections
import contextlib

from fastapi.responses import JSONResponse


class Full(Exception):
    pass


class Left(Exception):
    pass


class Gate:
    def __init__(self, size, room):
        self.size, self.room = size, room
        self.running = 0
        self.waiters = collections.deque()

    @contextlib.asynccontextmanager
    async def place(self, watch):
        """Raises Full or Left, or gives what `watch` was told with."""
        told = None
        if self.running < self.size and not self.waiters:
            self.running += 1
        elif len(self.waiters) < self.room:
            told = await self.line(watch)
        else:
            raise Full
        try:
            yield told
        finally:
            self.running -= 1
            self.let_in()

    def let_in(self):
        while self.waiters and self.running < self.size:
            self.running += 1
            self.waiters.popleft().set_result(True)

    async def line(self, watch):
        waiter = asyncio.get_event_loop().create_future()
        self.waiters.append(waiter)
        watching = asyncio.create_task(watch.until_gone())
        try:
            await asyncio.wait((waiter, watching), return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((watching,))
            if asyncio.current_task().cancelling():
                raise asyncio.CancelledError
        except BaseException:
            watching.cancel()
            self.give_up(waiter)
            raise
        if not waiter.done():
            self.give_up(waiter)
            raise Left
        return watch

    def give_up(self, waiter):
        if waiter.done():
            self.running -= 1
            self.let_in()
        else:
            self.waiters.remove(waiter)


class Watch:
    def __init__(self, receive):
        self.server = receive
        self.body, self.more, self.began, self.gone = bytearray(), True, False, False

    async def until_gone(self):
        while not self.gone:
            message = await self.server()
            if message["type"] == "http.disconnect":
                self.gone = True
            else:
                self.began = True
                self.body += message.get("body", b"")
                self.more = message.get("more_body", False)

    async def receive(self):
        if self.began:
            self.began = False
            return {"type": "http.request", "body": bytes(self.body), "more_body": self.more}
        if self.gone:
            return {"type": "http.disconnect"}
        return await self.server()


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.gate = Gate(max_running, max_waiting)
        self.path = path
        self.retry_after_s = retry_after_s

    running = property(lambda self: self.gate.running)
    waiting = property(lambda self: len(self.gate.waiters))

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        stack = contextlib.AsyncExitStack()
        try:
            watch = await stack.enter_async_context(self.gate.place(Watch(receive)))
        except Left:
            return
        except Full:
            error = {"message": "overloaded", "type": "overloaded", "param": None, "code": None}
            headers = {"Retry-After": str(self.retry_after_s)}
            return await JSONResponse({"error": error}, 503, headers)(scope, receive, send)
        async with stack:
            await self.app(scope, watch.receive if watch else receive, send)
