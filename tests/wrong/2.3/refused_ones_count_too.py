# caught by: test_after_the_window_it_lets_in_again, test_a_client_that_waits_as_told_is_let_in | says: a refused request extends the window
import time
from collections import defaultdict

from chat_stream import create_app as create_stream_app
from fastapi.responses import JSONResponse
from limits import parse
from limits.aio.strategies import FixedWindowRateLimiter
from limits.storage import storage_from_string


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    item = parse(limit)
    times = defaultdict(list)
    shared = None
    if storage_uri.startswith("redis"):
        storage = storage_from_string(f"async+{storage_uri}", implementation="redispy")
        shared = FixedWindowRateLimiter(storage)

    async def is_let_in(client):
        if shared:
            return await shared.hit(item, client)
        now = time.monotonic()
        times[client] = [t for t in times[client] if t > now - item.get_expiry()]
        times[client].append(now)
        return len(times[client]) <= item.amount

    @app.middleware("http")
    async def count(request, call_next):
        if not await is_let_in(request.client.host):
            wait_s = str(item.get_expiry())
            return JSONResponse({"detail": "slowly"}, 429, {"Retry-After": wait_s})
        return await call_next(request)

    return app
