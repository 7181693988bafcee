"""No future and no event: who waits looks again every few milliseconds whether it is the first and a place is free."""

import asyncio

from starlette.responses import JSONResponse


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.path = path
        self.retry_after_s = retry_after_s
        self.running = 0
        self.line = []

    @property
    def waiting(self):
        return len(self.line)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return

        if self.line or self.running >= self.max_running:
            if len(self.line) >= self.max_waiting:
                error = {"message": "try later", "type": "overloaded", "param": None, "code": None}
                response = JSONResponse({"error": error}, 503, {"Retry-After": str(self.retry_after_s)})
                await response(scope, receive, send)
                return
            me = object()
            body, left, reading = [], False, None
            self.line.append(me)
            try:
                while not (self.line[0] is me and self.running < self.max_running):
                    if reading is None:
                        reading = asyncio.create_task(receive())
                    await asyncio.wait([reading], timeout=0.003)
                    if reading.done():
                        message, reading = reading.result(), None
                        body.append(message)
                        if message["type"] == "http.disconnect":
                            left = True
                            return
                self.running += 1
            finally:
                self.line.remove(me)
                if left and reading:
                    reading.cancel()
            original = receive

            async def receive():
                nonlocal reading
                if body:
                    return body.pop(0)
                if reading is None:
                    return await original()
                # shielded: the app may give up asking and ask again
                message = await asyncio.shield(reading)
                reading = None
                return message

            try:
                await self.app(scope, receive, send)
            finally:
                self.running -= 1
                if reading:
                    reading.cancel()
            return

        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1
