# caught by: test_the_limit_lets_so_many_in_and_no_more, test_without_a_limit_it_is_50_a_minute, test_a_refusal_says_when_to_come_back, test_a_refused_request_costs_the_model_nothing, test_each_address_has_a_count_of_its_own, test_forwarded_addresses_are_not_believed, test_a_request_that_the_model_fails_counts, test_a_stream_in_progress_counts, test_after_the_window_it_lets_in_again, test_two_apps_in_memory_do_not_share_a_count, test_two_apps_on_one_redis_share_a_count, test_what_is_let_in_still_streams, test_what_is_let_in_is_answered_as_in_2_2, test_the_model_stops_when_the_client_leaves, test_a_body_that_is_422_counts, test_a_body_that_is_not_json_counts | says: parameter `request` must be an instance of starlette.requests.Request
import json

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def sse(data, event=None):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n"


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = FastAPI()
    limiter = Limiter(
        key_func=get_remote_address, storage_uri=storage_uri, headers_enabled=True
    )
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)

    @app.post("/chat_stream")
    @limiter.limit(limit)
    async def chat_stream(request: Body):
        pieces = handler.generate(
            request.prompt,
            stream=True,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
        )
        try:
            first = await anext(pieces, None)
        except Exception as error:
            raise HTTPException(500, "the model failed") from error

        async def events():
            piece, count = first, 0
            try:
                while piece is not None:
                    yield sse({"token": piece})
                    count += 1
                    piece = await anext(pieces, None)
                yield sse({"pieces": count}, "done")
            except Exception as error:
                yield sse({"message": str(error)}, "error")
            finally:
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
