# a right answer: the limits package in an HTTP middleware
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi.responses import JSONResponse
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    item = parse(limit)
    window = FixedWindowRateLimiter(storage_from_string(storage_uri))

    @app.middleware("http")
    async def count(request, call_next):
        client = request.client.host
        if not window.hit(item, client):
            left_s = window.get_window_stats(item, client).reset_time - time.time()
            wait_s = min(max(1, math.ceil(left_s)), item.get_expiry())
            return JSONResponse({"detail": "slowly"}, 429, {"Retry-After": str(wait_s)})
        return await call_next(request)

    return app
