"""HTTP to the answer's server, from outside. Silence and broken connections become Mistakes.

http = Http(room, room.serve(scene))
reply = http.post("/chat", json={"text": "hi"})       # waits, with the limit
waiting = http.start("POST", "/chat", json={...})     # in the background; waiting.reply()
"""

import asyncio
import contextlib
import functools
import json
import ssl
import threading
import time
from concurrent import futures
from dataclasses import dataclass

import httpx

MOST_BODY = 5_000_000


@dataclass(frozen=True)
class Reply:
    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    @property
    def data(self):
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def __str__(self):
        return f"{self.status} {self.text}"


class Http:
    """Requests to one server of the room."""

    def __init__(self, room, base_url):
        self.room, self.base_url = room, base_url
        self.client = httpx.AsyncClient(
            base_url=base_url,
            # the limit is the reader's, in `Waiting.reply`
            timeout=None,
            # a connection for each request: uvicorn closes one on which the app has raised
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
            # a room speaks http only: no certificates to load
            verify=base_url.startswith("https") or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    def get(self, path, *, limit_s=None, **request):
        return self.start("GET", path, **request).reply(limit_s)

    def post(self, path, *, limit_s=None, **request):
        return self.start("POST", path, **request).reply(limit_s)

    def start(self, method, path, **request):
        """Sends a request in the background: a Waiting. `request` is what httpx takes."""
        sending = _send(self.client, method, path, request)
        future = asyncio.run_coroutine_threadsafe(sending, _loop())
        return Waiting(self.room, f"{method} {path}", future)

    def facts(self, reply):
        """As `facts`."""
        return facts(self.room, reply)


class Waiting:
    """A request under way."""

    def __init__(self, room, what, future):
        self._room, self.what, self._future = room, what, future

    def done(self):
        """Whether it was answered, or broke."""
        return self._future.done()

    def wait(self, limit_s):
        """Waits until it was answered or broke; whether it did within the limit."""
        return bool(futures.wait([self._future], limit_s).done)

    def reply(self, limit_s=None):
        """The Reply.

        Raises:
            Hung: none within the limit.
            Ended: the connection broke, or the answer's process ended.
        """
        if not self.wait(limit_s or self._room.limit_s):
            raise self._room.hung(f"{self.what} got no answer")
        with guarded(self._room, self.what):
            return self._future.result()


@contextlib.contextmanager
def guarded(room, what):
    """Turns what httpx raises inside into a Hung or an Ended that names `what`."""
    try:
        yield
    except httpx.TimeoutException:
        raise room.hung(f"{what} got no answer") from None
    except httpx.ConnectError:
        raise room.broken(f"{what}: the server no longer accepts connections") from None
    except httpx.TransportError as error:
        raise room.broken(f"{what}: the connection broke before the whole answer had arrived ({error})") from None


def facts(room, reply):
    """`got` and `where` for an unexpected reply: itself, and for a 500 what the log says."""
    got, where = str(reply), None
    if reply.status >= 500:
        error, where = _logged(room)
        got += f" (in the server's log: {error})" if error else ""
    return {"got": got, "where": where}


def _logged(room):
    # the reply leaves before the traceback is logged
    until = time.monotonic() + 0.5
    while True:
        error, where = room.last_error()
        if error or time.monotonic() > until:
            return error, where
        time.sleep(0.01)


async def _send(client, method, path, request):
    async with client.stream(method, path, **request) as response:
        body = b""
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MOST_BODY:
                raise httpx.ReadError(f"it is longer than {MOST_BODY} bytes")
    return Reply(response.status_code, response.headers, body)


@functools.cache
def _loop():
    # one thread for all requests: rooms are forked from this process
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
