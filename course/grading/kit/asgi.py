"""One exchange with an ASGI app without a server: what it receives and what it sends, by hand.

    exchange = Exchange(app, http("/chat", method="POST")).start()
    exchange.give({"type": "http.request", "body": b"{}"})   # what its next receive() returns
    message = await exchange.sent()                          # what it sent next
    await exchange.ended()                                   # raises what the app raised

Nothing is awaited between the app's `send` and the message being here, so a message that is not here
while the app goes on is one that something in between keeps back.
"""

import asyncio
import contextlib
from collections import deque

LIMIT_S = 3.0
"""For what a free machine does in milliseconds; it only ends a hang."""

SENT = {
    "http": [
        {
            "type": "http.response.start",
            "status": 207,
            "headers": [
                (b"set-cookie", b"a=1"),
                (b"Set-Cookie", b"b=\xe9"),
                (b"content-type", b"text/plain"),
                (b"retry-after", b"9"),
            ],
            "trailers": True,
        },
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": True},
        {"type": "http.response.body", "body": b"two", "more_body": False},
        {"type": "http.response.trailers", "headers": [(b"checksum", b"12")], "more_trailers": False},
    ],
    "websocket": [
        {"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"server", b"mine")]},
        {"type": "websocket.send", "text": "你好"},
        {"type": "websocket.send", "bytes": b"\x00\xff"},
        {"type": "websocket.close", "code": 4000, "reason": "enough"},
    ],
    "lifespan": [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}],
}
"""Messages that an app may send, of each kind: what stands around it has to pass them on."""


def http(path="/", *, method="GET", headers=()):
    """The scope of an HTTP request. `headers` are pairs of bytes, the names in lower case."""
    return {**_scope("http", path, headers), "method": method, "scheme": "http"}


def websocket(path="/", *, headers=(), subprotocols=()):
    """The scope of a WebSocket connection."""
    return {**_scope("websocket", path, headers), "scheme": "ws", "subprotocols": list(subprotocols)}


def _scope(type, path, headers):
    return {
        "type": type,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver"), *headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("testserver", 80),
        "state": {},
    }


class Exchange:
    """One call of an ASGI app."""

    def __init__(self, app, scope):
        self.app, self.scope = app, scope
        self.messages = []
        """All that the app has sent so far."""
        self._seen = 0
        self._incoming, self._arrived, self._changed = deque(), asyncio.Event(), asyncio.Event()
        self._task = None

    async def call(self):
        """Calls the app here and now, in the caller's own task and context."""
        try:
            await self.app(self.scope, self._receive, self._send)
        finally:
            self._changed.set()

    def start(self):
        """Calls the app in a task; returns itself."""
        self._task = asyncio.create_task(self.call())
        return self

    def give(self, *messages):
        """What the app receives next; when its client has left, that again and again."""
        self._incoming += messages
        self._arrived.set()
        return self

    async def sent(self):
        """The next message that the app sent; None if it ended without one, or sends none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                while self._seen == len(self.messages) and not self._task.done():
                    self._changed.clear()
                    await self._changed.wait()
        if self._seen == len(self.messages):
            return None
        self._seen += 1
        return self.messages[self._seen - 1]

    async def ended(self):
        """Waits for the app's end, and raises what it raised."""
        await self._task
        return self

    def cancel(self):
        """Cancels the app's task, as a server does that gives up a request."""
        self._task.cancel()

    @property
    def status(self):
        """The response's status; None before it."""
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), None)

    @property
    def headers(self):
        """The response's headers, as (name in lower case, value) of text; [] before them."""
        pairs = [m.get("headers", ()) for m in self.messages if m["type"] == "http.response.start"]
        return [(_text(name).lower(), _text(value)) for name, value in (pairs or [()])[0]]

    @property
    def body(self):
        """The response's body so far."""
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    async def _receive(self):
        # as servers have it: one that is cancelled loses nothing, and several may wait
        while not self._incoming:
            self._arrived.clear()
            await self._arrived.wait()
        if self._incoming[0]["type"] == "http.disconnect":
            return self._incoming[0]
        return self._incoming.popleft()

    async def _send(self, message):
        self.messages.append(message)
        self._changed.set()


def _text(part):
    return part.decode("latin-1") if isinstance(part, bytes) else str(part)


async def get(app, path="/", **scope):
    """The whole exchange of a GET request; raises what the app raises."""
    exchange = Exchange(app, http(path, **scope)).give({"type": "http.request", "body": b""})
    return await exchange.start().ended()
