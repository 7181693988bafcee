"""asyncio's own Semaphore, which is fair: a task of its own acquires it, so that it can be given up."""

import asyncio
import json


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.max_waiting = max_waiting
        self.path = path
        self.retry_after_s = retry_after_s
        self.semaphore = asyncio.Semaphore(max_running)
        self.running = 0
        self.waiting = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        if not self.semaphore.locked():
            await self.semaphore.acquire()  # does not wait
        elif self.waiting >= self.max_waiting:
            await self.refuse(send)
            return
        else:
            receive = await self.acquired(receive)
            if receive is None:
                return
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1
            self.semaphore.release()

    async def acquired(self, receive):
        buffer = []

        async def listen():
            message = None
            while message is None or message["type"] == "http.request":
                message = await receive()
                buffer.append(message)

        async def replay():
            if buffer:
                return buffer.pop(0)
            return await receive()

        self.waiting += 1
        acquiring = asyncio.create_task(self.semaphore.acquire())
        listening = asyncio.create_task(listen())
        has = False
        try:
            await asyncio.wait({acquiring, listening}, return_when=asyncio.FIRST_COMPLETED)
            if acquiring.done() and not listening.done():
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
                has = True
                return replay
            return None
        finally:
            self.waiting -= 1
            if not has:
                listening.cancel()
                if not acquiring.cancel():
                    # it has the semaphore already
                    self.semaphore.release()
                else:
                    acquiring.add_done_callback(self.give_up)

    def give_up(self, acquiring):
        # acquired in the turn in which it was cancelled
        if not acquiring.cancelled():
            self.semaphore.release()

    async def refuse(self, send):
        await send(
            {
                "type": "http.response.start",
                "status": 503,
                "headers": [
                    (b"Content-Type", b"application/json; charset=utf-8"),
                    (b"Retry-After", b"%d" % self.retry_after_s),
                ],
            }
        )
        error = {"message": "Overloaded: please retry.", "type": "overloaded", "param": None, "code": None}
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode(), "more_body": False})
