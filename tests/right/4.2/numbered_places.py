"""Places are things: a free one lies in a list, a waiting request's future is given one, a queue joins its body."""

import asyncio
import json
from collections import OrderedDict


# given
class Ahead:
    """Reads what a client sends before anybody has asked for it, and plays it back afterwards."""

    def __init__(self, receive):
        self._receive, self._kept = receive, []

    async def __aenter__(self):
        self.gone = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self.gone.cancel()
        await asyncio.wait([self.gone])

    async def _read(self):
        while not self._kept or self._kept[-1]["type"] != "http.disconnect":
            self._kept.append(await self._receive())

    async def receive(self):
        return self._kept.pop(0) if self._kept else await self._receive()


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.free = list(range(max_running))
        self.size = max_running
        self.max_waiting = max_waiting
        self.path = path
        self.retry_after_s = retry_after_s
        self.queue = OrderedDict()

    @property
    def running(self):
        return self.size - len(self.free)

    @property
    def waiting(self):
        return len(self.queue)

    def put_back(self, place):
        while self.queue:
            _, future = self.queue.popitem(last=False)
            if not future.done():
                future.set_result(place)
                return
        self.free.append(place)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        ahead = None
        if self.free:
            place = self.free.pop()
        elif len(self.queue) < self.max_waiting:
            ahead = Ahead(receive)
            place = await self.stand_in_line(ahead)
            if place is None:
                return
        else:
            await self.send_503(send)
            return
        try:
            await self.app(scope, ahead.receive if ahead else receive, send)
        finally:
            self.put_back(place)

    async def stand_in_line(self, ahead):
        future = asyncio.Future()
        self.queue[id(future)] = future
        try:
            async with ahead:
                await asyncio.wait({future, ahead.gone}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            if future.done():
                self.put_back(future.result())
            raise
        finally:
            self.queue.pop(id(future), None)
        return future.result() if future.done() else None

    async def send_503(self, send):
        document = {"error": {"message": "queue is full", "type": "overloaded", "param": None, "code": None}}
        start = {"type": "http.response.start", "status": 503}
        start["headers"] = [[b"content-type", b"application/json"], [b"retry-after", b"%d" % self.retry_after_s]]
        await send(start)
        for part in json.JSONEncoder(indent=1).iterencode(document):
            await send({"type": "http.response.body", "body": part.encode(), "more_body": True})
        await send({"type": "http.response.body"})
