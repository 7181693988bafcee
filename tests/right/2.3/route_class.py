# a right answer: a route class that counts before the body is read, the sliding window of limits
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    item, window = parse(limit), SlidingWindowCounterRateLimiter(storage_from_string(storage_uri))
    inner = create_stream_app(handler)

    class Counted(APIRoute):
        def get_route_handler(self):
            answer = super().get_route_handler()

            async def counted(request):
                if not window.hit(item, request.client.host):
                    reset = window.get_window_stats(item, request.client.host).reset_time
                    wait_s = min(max(math.ceil(reset - time.time()), 1), item.get_expiry())
                    raise HTTPException(429, "too many requests", {"Retry-After": str(wait_s)})
                return await answer(request)

            return counted

    app = FastAPI()
    app.router.route_class = Counted
    for route in inner.routes:
        if route.path == "/chat_stream":
            app.post("/chat_stream", response_class=route.response_class)(route.endpoint)
    app.exception_handlers.update(inner.exception_handlers)
    return app
