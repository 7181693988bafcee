# caught by: test_a_body_that_is_not_json_counts, test_a_stream_in_progress_counts | says: a request that is not JSON is not counted
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi import Depends, FastAPI, HTTPException, Request
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    item = parse(limit)
    window = MovingWindowRateLimiter(storage_from_string(storage_uri))

    def count(request: Request):
        if not window.hit(item, request.client.host):
            reset = window.get_window_stats(item, request.client.host).reset_time
            raise HTTPException(429, "slowly", {"Retry-After": str(math.ceil(reset - time.time()))})

    inner = create_stream_app(handler)
    app = FastAPI(exception_handlers=inner.exception_handlers)
    for route in inner.routes:
        if route.path == "/chat_stream":
            app.post(
                "/chat_stream", response_class=route.response_class, dependencies=[Depends(count)]
            )(route.endpoint)
    return app
