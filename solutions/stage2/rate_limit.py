"""Exercise 2.3: the stream of 2.2, with a rate limit for each client."""

import math
import time

from chat_stream import create_app as create_stream_app
from fastapi.responses import JSONResponse
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter
from limits.storage import storage_from_string


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    """Create the app of exercise 2.2, with a limit on `POST /chat_stream` for each client address.

    A request over the limit gets a 429, and the model takes no step for it. Its `Retry-After` is a
    whole number of seconds, from 1 to the length of the window. A client that waits that long gets
    through, and has waited at most one second longer than necessary. (Redis gives `limits` only whole
    seconds, rounded, so with Redis the header may be up to a second off. This is not tested.)

    Even if many requests arrive at the same time, no more get through than the limit allows. Every
    request counts as soon as it arrives (not only once its answer has been streamed), even if it fails
    validation, is not JSON or breaks off. A refused request does not extend the window. The address is
    that of the connection's peer: `X-Forwarded-For` is not trusted. Requests that get through stream
    as before. Whether requests to other paths count, too, is up to you.

    Args:
        handler: as in exercise 2.2.
        limit: one limit, in the notation of the `limits` package, such as "50/minute" or "3/second".
        storage_uri: where the count is stored, in the notation of `limits`. Two apps on the same
            Redis ("redis://127.0.0.1:6379") share a count; two on "memory://" do not. The app can be
            created even while Redis does not respond; the `redis` package is installed.

    Returns:
        The FastAPI app.

    Example:
        >>> app = create_app(handler, limit="2/minute")
    """
    app = create_stream_app(handler)
    app.add_middleware(
        _RateLimit,
        limit=parse(limit),
        limiter=FixedWindowRateLimiter(_storage(storage_uri)),
    )
    return app


def _storage(uri):
    if uri.startswith("redis"):
        return storage_from_string(f"async+{uri}", implementation="redispy")
    return storage_from_string(f"async+{uri}")


class _RateLimit:
    """Runs before routing and validation, so that every request is counted."""

    def __init__(self, app, limit, limiter):
        self.app, self.limit, self.limiter = app, limit, limiter

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/chat_stream":
            address = scope["client"][0] if scope["client"] else "unknown"
            if not await self.limiter.hit(self.limit, address):
                refusal = await self._refusal(address)
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _refusal(self, address):
        window = await self.limiter.get_window_stats(self.limit, address)
        wait_s = math.ceil(window.reset_time - time.time())
        wait_s = min(max(wait_s, 1), self.limit.get_expiry())
        return JSONResponse(
            {"detail": f"The limit is {self.limit}. Try again in {wait_s} seconds."},
            status_code=429,
            headers={"Retry-After": str(wait_s)},
        )
