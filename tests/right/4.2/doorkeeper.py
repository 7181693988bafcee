"""A task that lets in: it takes the longest waiting from a queue whenever somebody has come out."""

import asyncio

from starlette.responses import Response


class Waiting:
    def __init__(self):
        self.state = "waits"
        self.over = asyncio.get_running_loop().create_future()

    def be(self, state):
        if self.state == "waits":
            self.state = state
            if not self.over.done():
                self.over.set_result(state)
            return True
        return False


class Admission:
    BUSY = '{"error": {"message": "no place is free", "type": "overloaded", "param": null, "code": null}}'

    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.max_running, self.max_waiting = max_running, max_waiting
        self.path = path
        self.headers = {"Retry-After": str(retry_after_s)}
        self.running = 0
        self.line = []
        self.come_out = asyncio.Event()
        self.keeper = None

    @property
    def waiting(self):
        return sum(each.state == "waits" for each in self.line)

    async def keep(self):
        while True:
            await self.come_out.wait()
            self.come_out.clear()
            while self.line and self.running < self.max_running:
                if self.line.pop(0).be("in"):
                    self.running += 1

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        if self.keeper is None:
            self.keeper = asyncio.get_running_loop().create_task(self.keep())
        if self.running >= self.max_running or self.waiting:
            if self.waiting >= self.max_waiting:
                response = Response(self.BUSY, 503, headers=self.headers, media_type="application/json")
                return await response(scope, receive, send)
            before = []
            if not await self.let_in(receive, before):
                return
            receive = Replay(before, receive)
        else:
            self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.out()

    def out(self):
        self.running -= 1
        self.come_out.set()

    async def let_in(self, receive, before):
        me = Waiting()
        self.line.append(me)

        async def hear():
            while me.state == "waits":
                before.append(await receive())
                if before[-1]["type"] == "http.disconnect":
                    me.be("left")

        hearing = asyncio.create_task(hear())
        try:
            state = await me.over
        except asyncio.CancelledError:
            hearing.cancel()
            if not me.be("cancelled") and me.state == "in":
                self.out()
            raise
        hearing.cancel()
        try:
            await hearing
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():
                if state == "in":
                    self.out()
                raise
        return state == "in"


class Replay:
    def __init__(self, messages, receive):
        self.messages, self.receive = messages, receive

    async def __call__(self):
        if self.messages:
            return self.messages.pop(0)
        return await self.receive()
