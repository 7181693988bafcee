"""Exercise 2.2: an answer as server-sent events, each piece sent as soon as it is available."""

import logging
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

logger = logging.getLogger(__name__)

FAILED = "The model failed to answer."
"""What the client is told, before or after the first piece; the details are in the log."""


def create_app(handler):
    """Create an app that streams an answer as server-sent events.

        POST /chat_stream  {"prompt": "你好", "max_new_tokens": 128, "temperature": 0}
        ->  200, text/event-stream:

            data: {"token": "你好"}

            data: {"token": "！"}

            event: done
            data: {"pieces": 2}

    Each piece is a separate event, sent as soon as it is available. `pieces` is the number of pieces:
    it tells the client whether it missed any.

    `prompt` is a non-empty string (you decide whether to allow whitespace alone), `max_new_tokens` an
    integer of at least 1 (128 by default), `temperature` a finite number of at least 0 (0 by default);
    upper bounds are up to you. Anything else, such as a body that is not JSON, gets a 422, and the
    model takes no step for it. (FastAPI's own 400 for a body that is nested too deeply or not UTF-8,
    and its own 500 for NaN and infinity, are fine, too. Not graded: values that pydantic would
    convert, such as "5" or true for an integer, a null for an optional field, half a surrogate such as
    "\\ud800" in `prompt`, and integers with thousands of digits.)

    If the model fails before the first piece, the response is a 4xx or 5xx and not an event stream.
    If it fails later, an `error` event follows, with the data {"message": "..."}, and the stream ends
    without `done`. In both cases the wording is up to you, but it must not show a traceback: that
    belongs in the server's log (which is not tested). The next request is answered as usual.

    When the client leaves, the model stops within three steps, even while a piece is being sent. If
    the client leaves before the first piece, the three steps are counted from that piece. To stop the
    model, use `aclose` to close what `generate` returned, or cancel it while it waits for a piece.

    Args:
        handler: has `generate(prompt, stream=True, max_new_tokens=..., temperature=...)`, as in
            exercise 2.1. What this returns has `aclose`, and is read with `async for` or `anext`,
            both of which raise the model's errors.

    Returns:
        The FastAPI app.

    Example:
        >>> app = create_app(ModelHandler(*load_chat_model("course/qwen/tiny")))
        >>> uvicorn.run(app)
    """

    class ChatRequest(BaseModel):
        prompt: str = Field(min_length=1, max_length=4000)
        max_new_tokens: int = Field(128, ge=1, le=1024, strict=True)
        temperature: float = Field(0.0, ge=0, le=2, strict=True, allow_inf_nan=False)

    app = FastAPI(max_body_size=1_000_000)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_allowed(request, error):
        # the input is left out: it may contain a NaN, which is not JSON, or be very long
        problems = [{key: each[key] for key in ("loc", "msg", "type")} for each in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    @app.exception_handler(400)
    async def say_that_it_is_no_json(request, error):
        # FastAPI's own answer to bytes that are not text, and to JSON that is nested too deep
        problem = {"loc": ["body"], "msg": error.detail, "type": "json_invalid"}
        return JSONResponse({"detail": [problem]}, 422)

    # A dependency runs before the response starts, so an error here can still set the status code.
    async def start(body: ChatRequest):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            try:
                first = await anext(pieces, None)
            except Exception:
                logger.exception("no first piece")
                raise HTTPException(500, FAILED) from None
            yield first, pieces
        finally:
            # here, and not in the stream, which never starts if the client has already left
            await pieces.aclose()

    @app.post("/chat_stream", response_class=EventSourceResponse)
    async def chat_stream(answer: Annotated[tuple, Depends(start)]):
        piece, pieces = answer
        sent = 0
        try:
            while piece is not None:
                yield ServerSentEvent(data={"token": piece})
                sent += 1
                piece = await anext(pieces, None)
        except Exception:
            logger.exception("the answer broke off after %d pieces", sent)
            yield ServerSentEvent(event="error", data={"message": FAILED})
        else:
            yield ServerSentEvent(event="done", data={"pieces": sent})

    return app
