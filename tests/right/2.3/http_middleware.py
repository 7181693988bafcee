# a right answer: an "http" middleware around an endpoint of its own, the moving window of limits
import json
import math
import time

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from limits import parse, strategies
from limits.storage import storage_from_string
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def sse(data, event=None):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n"


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = FastAPI()
    item = parse(limit)
    window = strategies.MovingWindowRateLimiter(storage_from_string(storage_uri))

    @app.middleware("http")
    async def count(request, call_next):
        client = request.client.host
        if not window.hit(item, "chat_stream", client):
            until = window.get_window_stats(item, "chat_stream", client).reset_time
            wait_s = max(1, min(item.get_expiry(), math.ceil(until - time.time())))
            return JSONResponse({"detail": "slowly"}, 429, {"retry-after": str(wait_s)})
        return await call_next(request)

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
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
