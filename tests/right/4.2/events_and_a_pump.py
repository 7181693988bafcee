"""An Event for each who waits, and a task that reads for it from the beginning to the end."""

import asyncio
import json
from collections import deque


class Pump:
    def __init__(self, receive):
        self.receive_from_server = receive
        self.messages = asyncio.Queue()
        self.gone = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    async def run(self):
        while True:
            message = await self.receive_from_server()
            self.messages.put_nowait(message)
            if message["type"] == "http.disconnect":
                self.gone.set()
                return

    async def receive(self):
        if self.gone.is_set() and self.messages.empty():
            return {"type": "http.disconnect"}
        return await self.messages.get()


class Place:
    def __init__(self):
        self.free = asyncio.Event()
        self.mine = False


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.path = path
        self.retry_after_s = retry_after_s
        self.running = 0
        self.queue = deque()

    @property
    def waiting(self):
        return len(self.queue)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == self.path:
            if self.running < self.max_running:
                self.running += 1
                await self.run(scope, receive, send)
            elif len(self.queue) < self.max_waiting:
                await self.wait(scope, receive, send)
            else:
                await self.refuse(send)
        else:
            await self.app(scope, receive, send)

    async def run(self, scope, receive, send):
        try:
            await self.app(scope, receive, send)
        finally:
            self.next()

    def next(self):
        if self.queue:
            place = self.queue.popleft()
            place.mine = True
            place.free.set()
        else:
            self.running -= 1

    async def wait(self, scope, receive, send):
        place = Place()
        self.queue.append(place)
        pump = Pump(receive)
        tasks = [asyncio.create_task(place.free.wait()), asyncio.create_task(pump.gone.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if place.mine and not pump.gone.is_set():
                # from here on `run` gives the place back
                place.mine = False
                await self.run(scope, pump.receive, send)
        finally:
            for task in tasks:
                task.cancel()
            pump.task.cancel()
            if place.mine:
                self.next()
            elif place in self.queue:
                self.queue.remove(place)

    async def refuse(self, send):
        error = {"message": "The server is busy.", "type": "overloaded", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(self.retry_after_s).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
