# a right answer: slowapi's decorator on an endpoint that takes the bare request and validates by hand
import json

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address


def is_fine(body):
    if not isinstance(body, dict) or not isinstance(body.get("prompt"), str) or not body["prompt"]:
        return False
    tokens, temperature = body.get("max_new_tokens", 128), body.get("temperature", 0)
    if type(tokens) is not int or tokens < 1:
        return False
    return type(temperature) in (int, float) and temperature >= 0


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    limiter = Limiter(
        key_func=get_remote_address,
        storage_uri=storage_uri,
        headers_enabled=True,
        strategy="moving-window",
    )
    app = FastAPI()
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)

    @app.post("/chat_stream")
    @limiter.limit(limit)
    async def chat_stream(request: Request):
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not is_fine(body):
            return JSONResponse({"detail": "prompt, max_new_tokens, temperature"}, 422)
        pieces = handler.generate(
            body["prompt"],
            stream=True,
            max_new_tokens=body.get("max_new_tokens", 128),
            temperature=body.get("temperature", 0),
        )
        try:
            first = await anext(pieces, None)
        except Exception:
            return JSONResponse({"detail": "the model failed"}, 503)

        async def events():
            piece, count = first, 0
            try:
                while piece is not None:
                    yield f"data: {json.dumps({'token': piece})}\n\n"
                    count += 1
                    piece = await anext(pieces, None)
                yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
            except Exception as error:
                yield f"event: error\ndata: {json.dumps({'message': str(error)})}\n\n"
            finally:
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
