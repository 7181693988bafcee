# caught by: test_after_the_window_it_lets_in_again | says: after the window has passed, requests are still refused
from collections import Counter

import redis
from chat_stream import create_app as create_stream_app
from fastapi.responses import JSONResponse
from limits import parse


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    item = parse(limit)
    counts = Counter()
    shared = redis.Redis.from_url(storage_uri) if storage_uri.startswith("redis") else None

    @app.middleware("http")
    async def count(request, call_next):
        client = request.client.host
        if shared:
            number = shared.incr(client)
        else:
            counts[client] += 1
            number = counts[client]
        if number > item.amount:
            return JSONResponse({"detail": "slowly"}, 429, {"Retry-After": "1"})
        return await call_next(request)

    return app
