"""Exercise 4.2: no more requests at once than the model can handle, and a quick refusal for the others."""

import asyncio
from collections import deque

from starlette.responses import JSONResponse


# given
class Ahead:
    """Reads what a client sends, before anyone has asked for it, and replays it afterwards.

        async with Ahead(receive) as ahead:
            ...  # in this block it reads, and keeps what it has read
        await app(scope, ahead.receive, send)

    Inside the block, `ahead.gone` is a task that finishes when the client has gone; `asyncio.wait` can
    wait for it along with other things. When the block ends, reading has stopped, and `gone` is done in
    any case: look at it inside the block.
    """

    def __init__(self, receive):
        self._receive, self._kept = receive, deque()

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
        """For the app, in place of the server's: first what was read ahead, in order, then what follows."""
        return self._kept.popleft() if self._kept else await self._receive()


class Admission:
    """ASGI middleware that lets a limited number of requests run and a limited number wait, and refuses the rest.

    It counts HTTP requests to `path`, whatever the method. Up to `max_running` of them are in the app at a
    time. Up to `max_waiting` more wait for a place: first come, first served, even ahead of a request that
    arrives at the very moment a place becomes free. Any further request gets a response immediately,
    without the app being called, whether or not its body has arrived:

        503, Content-Type: application/json, Retry-After: retry_after_s

        {"error": {"message": ..., "type": "overloaded", "param": null, "code": null}}

    with a message for people to read. (While a place is changing hands, a newcomer may be refused.)

    A place is given back when the app's call ends, and only then: not when its last piece has been sent,
    and not when its client leaves. However the call ends, the place is given back: by a return, an error or
    a cancellation, even if nothing was sent. Admission never cancels the app; the app
    hears from `receive` that its client has gone.

    Requests whose clients leave while they wait, or whose calls are cancelled then, stop waiting and never
    reach the app. (If a request's turn comes at that very moment, it may. Either way, its place is given back.
    That also holds if you read a request's whole body before you call the app.)
    Whatever a client sends while it waits, such as a body in several parts, reaches the app complete and in
    order (the parts may be joined), and so does a later disconnect.

    Everything else passes through untouched, even when all places are taken: other paths, WebSockets, lifespan.
    What the app sends is passed on as it arrives, and its errors come through.

    `admission.running` is how many requests are in the app now, `admission.waiting` how many are waiting.
    While a place is changing hands, `running` also counts the request on its way into the app. Each Admission
    counts for itself. All calls are made from one event loop. The server's `receive` can be cancelled without
    losing a message, and if it is called again after the client has gone, it says so again.

    Args:
        app: the ASGI app.
        max_running: 1 or more.
        max_waiting: 0 or more; with 0, no request waits.
        path: the whole path, compared as it is.
        retry_after_s: an int, in seconds.

    Not graded: other ways to write the path, bodies of more than 1 MB that arrive while their request
    waits, pipelined requests, the body of the response to HEAD, whether more is read ahead once a request
    is in the app, and whether the call for a request that has stopped waiting returns or raises.

    Example:
        >>> app.add_middleware(Admission, max_running=16, max_waiting=64)
    """

    def __init__(self, app, *, max_running, max_waiting, path="/v1/chat/completions", retry_after_s=1):
        self.app, self.path, self.retry_after_s = app, path, retry_after_s
        self.max_running, self.max_waiting = max_running, max_waiting
        self.running = self.waiting = 0
        self._turns = deque()
        """A future for each waiting request."""

    async def __call__(self, scope, receive, send):
        """The server awaits this for each request and connection, as ASGI specifies."""
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        if self.running < self.max_running:
            self.running += 1
        elif self.waiting < self.max_waiting:
            self.waiting += 1
            ahead = Ahead(receive)
            if not await self._turn_comes(ahead):
                return
            receive = ahead.receive
        else:
            await self._refusal()(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self._give_back()

    async def _turn_comes(self, ahead):
        """Wait. Returns whether this request has a place now; if not, its client has gone."""
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        comes = False
        try:
            async with ahead:
                await asyncio.wait([turn, ahead.gone], return_when=asyncio.FIRST_COMPLETED)
            comes = turn.done() and ahead.gone.cancelled()
        finally:
            if turn.done() and not comes:
                self._give_back()
            elif not turn.done():
                self._turns.remove(turn)
                self.waiting -= 1
        return comes

    def _give_back(self):
        # handed over, not freed: a request that arrives now cannot take it
        if self._turns:
            self.waiting -= 1
            self._turns.popleft().set_result(None)
        else:
            self.running -= 1

    def _refusal(self):
        message = f"{self.running} requests are being answered and {self.waiting} wait: try again later"
        error = {"message": message, "type": "overloaded", "param": None, "code": None}
        return JSONResponse({"error": error}, 503, headers={"Retry-After": str(self.retry_after_s)})
