# caught by: test_a_newcomer_overtakes_nobody | says: overtakes
import asyncio

from starlette.responses import JSONResponse


class Admission:
    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app = app
        self.places = asyncio.Queue()
        for place in range(max_running):
            self.places.put_nowait(place)
        self.max_waiting = max_waiting
        self.path = path
        self.retry_after_s = retry_after_s
        self.running = 0
        self.waiting = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        kept = []
        try:
            place = self.places.get_nowait()
        except asyncio.QueueEmpty:
            if self.waiting >= self.max_waiting:
                error = {"message": "overloaded", "type": "overloaded", "param": None, "code": None}
                headers = {"Retry-After": str(self.retry_after_s)}
                await JSONResponse({"error": error}, status_code=503, headers=headers)(scope, receive, send)
                return
            place = await self.wait(receive, kept)
            if place is None:
                return
        self.running += 1

        async def replay():
            return kept.pop(0) if kept else await receive()

        try:
            await self.app(scope, replay, send)
        finally:
            self.running -= 1
            self.places.put_nowait(place)

    async def wait(self, receive, kept):
        async def read():
            while not kept or kept[-1]["type"] != "http.disconnect":
                kept.append(await receive())

        self.waiting += 1
        reading, getting = asyncio.create_task(read()), asyncio.create_task(self.places.get())
        try:
            await asyncio.wait([reading, getting], return_when=asyncio.FIRST_COMPLETED)
            left = reading.done()
            reading.cancel()
            await asyncio.wait([reading])
            if left:
                return None
            place, getting = getting.result(), None
            return place
        finally:
            self.waiting -= 1
            reading.cancel()
            if getting and not getting.cancel():
                self.places.put_nowait(getting.result())
