"""Tickets are drawn in the order of coming, and a Condition wakes all who wait: the lowest ticket goes in."""

import asyncio
import itertools

from starlette.responses import JSONResponse


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.limits = max_running, max_waiting
        self.path, self.retry_after_s = path, retry_after_s
        self.tickets = itertools.count()
        self.inside, self.line = set(), []
        self.changed = asyncio.Condition()

    @property
    def running(self):
        return len(self.inside)

    @property
    def waiting(self):
        return len(self.line)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        max_running, max_waiting = self.limits
        ticket = next(self.tickets)
        if self.line or len(self.inside) >= max_running:
            if len(self.line) >= max_waiting:
                return await self.busy()(scope, receive, send)
            kept = []
            self.line.append(ticket)
            watch = asyncio.ensure_future(self.watch(receive, kept))
            turn = asyncio.ensure_future(self.turn(ticket))
            try:
                await asyncio.wait([watch, turn], return_when="FIRST_COMPLETED")
            finally:
                if ticket in self.line:
                    self.line.remove(ticket)
                turn.cancel()
                watch.cancel()
                if watch.done() or not turn.done() or asyncio.current_task().cancelling():
                    self.inside.discard(ticket)
                    self.wake()
            if ticket not in self.inside:
                return

            # the reader ends before the app reads
            try:
                await asyncio.wait([watch])
            except asyncio.CancelledError:
                self.leave(ticket)
                raise
            server = receive

            async def receive():
                return kept.pop(0) if kept else await server()

        else:
            self.inside.add(ticket)
        try:
            await self.app(scope, receive, send)
        finally:
            self.leave(ticket)

    def leave(self, ticket):
        self.inside.discard(ticket)
        self.wake()

    def wake(self):
        async def notify():
            async with self.changed:
                self.changed.notify_all()

        self.notifier = asyncio.ensure_future(notify())

    async def turn(self, ticket):
        async with self.changed:
            await self.changed.wait_for(
                lambda: self.line and self.line[0] == ticket and len(self.inside) < self.limits[0]
            )
            self.line.remove(ticket)
            self.inside.add(ticket)
            self.changed.notify_all()

    async def watch(self, receive, kept):
        while True:
            kept.append(await receive())
            if kept[-1]["type"] == "http.disconnect":
                return

    def busy(self):
        error = dict(message="too many requests", type="overloaded", param=None, code=None)
        return JSONResponse({"error": error}, status_code=503, headers={"retry-after": f"{self.retry_after_s:d}"})
