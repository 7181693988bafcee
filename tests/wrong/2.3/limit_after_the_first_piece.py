# caught by: test_a_refused_request_costs_the_model_nothing, test_a_body_that_is_422_counts, test_a_body_that_is_not_json_counts, test_a_request_that_the_model_fails_counts, test_a_stream_in_progress_counts | says: a refused request still makes the model run
import math
import time

from chat_stream import create_app as create_stream_app
from fastapi import FastAPI, HTTPException, Request, Depends
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    item = parse(limit)
    window = MovingWindowRateLimiter(storage_from_string(storage_uri))
    inner = create_stream_app(handler)
    app = FastAPI(exception_handlers=inner.exception_handlers)
    route = next(route for route in inner.routes if route.path == "/chat_stream")
    start = route.dependant.dependencies[0].call

    def count(request: Request, answer=Depends(start)):
        if not window.hit(item, request.client.host):
            reset = window.get_window_stats(item, request.client.host).reset_time
            raise HTTPException(429, "slowly", {"Retry-After": str(math.ceil(reset - time.time()))})
        return answer

    @app.post("/chat_stream", response_class=route.response_class)
    async def chat_stream(answer=Depends(count)):
        async for event in route.endpoint(answer):
            yield event

    return app
