# caught by: test_without_a_limit_it_is_50_a_minute | says: the window is longer than a minute
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi import Response
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter


def create_app(handler, *, limit="50/hour", storage_uri="memory://"):
    app = create_stream_app(handler)
    item = parse(limit)
    window = MovingWindowRateLimiter(storage_from_string(storage_uri))

    @app.middleware("http")
    async def count(request, call_next):
        client = request.client.host
        if not window.hit(item, client):
            left_s = math.ceil(window.get_window_stats(item, client).reset_time - time.time())
            wait_s = min(max(1, left_s), item.get_expiry())
            return Response("later", 429, {"Retry-After": str(wait_s)})
        return await call_next(request)

    return app
