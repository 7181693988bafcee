"""Exercise 3.7: the endpoint that OpenAI's own client talks to."""

import asyncio
import json
import logging
import time
import uuid
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, field_validator

logger = logging.getLogger(__name__)


# given
Text = Annotated[str, Field(min_length=0)]
"""Any constraint makes pydantic check the characters: a lone surrogate is refused."""


# given
class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


# given
class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart]

    def as_dict(self):
        """{"role", "content"} with the content as one string."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


# given
class StreamOptions(BaseModel):
    include_usage: bool | None = None


# given
class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. Other fields are ignored, and null counts as left
    out, except for `model` and `messages`."""

    model: Text
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: Literal[1] | None = None
    stop: Text | list[Text] | None = None
    seed: int | None = Field(None, ge=0, le=2**32 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop):
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 4 or "" in stops:
            raise ValueError("stop must be a non-empty string or a list of up to four")
        return stops

    @property
    def options(self):
        """The keyword arguments for `chat`, with defaults filled in."""
        return {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stop": self.stop or [],
        }

    @property
    def include_usage(self):
        return bool(self.stream_options and self.stream_options.include_usage)


# given
def openai_error(status, message, *, type, param=None, code=None):
    """A JSON response in the format of OpenAI's errors; `.body` has its bytes."""
    error = {"message": message, "type": type, "param": param, "code": code}
    return JSONResponse({"error": error}, status)


def create_app(load, *, model="tiny-qwen"):
    """Create an app that OpenAI's client can use as if it were OpenAI's own.

        POST /v1/chat/completions   see ChatRequest
        GET  /v1/models             {"object": "list", "data": [{"id": "tiny-qwen", "object": "model", ...}]}

    A non-streamed answer (usage and reason are those of the last Piece):

        {"id": "chatcmpl-...", "object": "chat.completion", "created": 1700000000, "model": "tiny-qwen",
         "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi!"}, "finish_reason": "stop"}],
         "usage": {"prompt_tokens": 27, "completion_tokens": 3, "total_tokens": 30}}

    With `"stream": true`, the answer is a series of events without a name, each of them a
    `chat.completion.chunk` that is sent as soon as its text is available. All chunks of an answer have
    the same id and the same `created`:

        data: {..., "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}

        data: {..., "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]}

        data: {..., "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

        data: [DONE]

    The first chunk, and no other, has `delta.role`; its content may be left out, be empty, or be the first
    text. The content is never null. The finish_reason is sent once, with an empty delta, after any text of the last
    Piece. With `stream_options.include_usage`, one more chunk is sent before [DONE], with `"choices": []`
    and `usage`; in all others, `usage` is left out or null.

    Each request gets its own id. An answer's `created` is the time in whole seconds since 1970.

    `chat` is given the messages as dicts of role and content, with the content as one string (parts are
    joined with nothing between them), and the options as requested, with `stop` as a list. Options that are
    left out or null get the defaults of exercise 3.6. `max_completion_tokens` wins over `max_tokens`.

    Errors are `{"error": {"message", "type", "param", "code"}}`. All four are present; `param` and `code` are
    a string or null:

        400  invalid_request_error   anything wrong in the body, including one that is not JSON, has bytes that
                                     are not text, or is nested too deep; also a ValueError from `chat` before
                                     the first piece, with code context_length_exceeded
        404  invalid_request_error   any other model, with code model_not_found
        500  server_error            `chat` fails when called or before its first piece, or at any time if the answer
                                     is not streamed (including a ValueError after the first piece): a plain
                                     message with nothing from the exception

    If the model fails after the first piece of a stream, one more event is sent, named `error` or without a
    name, with such a server_error as its data. Then the stream ends, without a finish_reason or [DONE].

    Not promised: what happens with a lone surrogate in a text, or with JSON in UTF-16 or UTF-32, which Python's
    json reads.

    The model takes no step for a refused request. When the client leaves, streaming or not, even while no piece
    is arriving, the model stops within three steps: what `chat` returned is closed, or its reader is
    cancelled. No other answer is affected, and answers do not wait for each other.

    Args:
        load: returns an object with `chat(messages, *, max_tokens, temperature, top_p, seed, stop)` as in
            exercise 3.6. What `chat` returns is read with `async for` or `anext`, yields Pieces and has `aclose`.
            A ValueError may be raised by the call to `chat` or when the first piece is requested. `load` is
            called once, when the app starts, before the first request is answered.
        model: the model's name in requests.

    Returns:
        The FastAPI app.

    Example:
        >>> app = create_app(lambda: ChatModel(*load_chat_model("course/qwen/tiny")))
        >>> uvicorn.run(app)
    """

    @asynccontextmanager
    async def lifespan(app):
        app.state.chat_model = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_wrong(request, error):
        problem = error.errors()[0]
        # the body's field: after it come pydantic's own names or, for a body that is not JSON, a position in the text
        param = next((name for name in problem["loc"][1:2] if isinstance(name, str)), None)
        message = f"{param or 'the body'}: {problem['msg']}"
        return openai_error(400, message, type="invalid_request_error", param=param)

    @app.exception_handler(400)
    async def say_that_it_is_not_json(request, error):
        # FastAPI's own answer to bytes that are not text, and to JSON that is nested too deep
        return openai_error(400, error.detail, type="invalid_request_error")

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "you"}]}

    # it ends after the response does, even if the response never began: that is where the answer is closed
    async def until_answered():
        async with AsyncExitStack() as stack:
            yield stack

    @app.post("/v1/chat/completions", responses={200: {"content": {"text/event-stream": {}}}})
    async def chat_completions(
        body: ChatRequest, request: Request, stack: Annotated[AsyncExitStack, Depends(until_answered)]
    ):
        if body.model != model:
            return openai_error(
                404, f"There is no model {body.model!r}.", type="invalid_request_error", code="model_not_found"
            )
        answer = _Answer(model, body.include_usage)
        messages = [message.as_dict() for message in body.messages]
        try:
            pieces = app.state.chat_model.chat(messages, **body.options)
            await stack.enter_async_context(aclosing(pieces))
            first = await _unless_left(request, anext(pieces))
        except ValueError as error:
            return openai_error(400, str(error), type="invalid_request_error", code="context_length_exceeded")
        except Exception:
            return _failed()
        if first is None:
            return Response()
        if body.stream:
            return StreamingResponse(answer.events(first, pieces), media_type="text/event-stream")
        try:
            whole = await _unless_left(request, answer.whole(first, pieces))
        except Exception:
            return _failed()
        return whole or Response()

    return app


async def _unless_left(request, work):
    """What `work` returns, or None if the client leaves first; `work` is cancelled then."""
    work = asyncio.ensure_future(work)
    # the body has been read: all that can still arrive is the client's disconnect
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        left.cancel()
        if work.cancel():
            await asyncio.gather(work, return_exceptions=True)


def _failed():
    logger.exception("the model failed")
    return openai_error(500, "The model failed to answer.", type="server_error")


class _Answer:
    """One answer in OpenAI's two formats."""

    def __init__(self, model, include_usage):
        self._same = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._include_usage = include_usage

    async def whole(self, piece, pieces):
        """The JSON of a non-streamed answer."""
        texts = [piece.text]
        async for piece in pieces:
            texts.append(piece.text)
        message = {"role": "assistant", "content": "".join(texts)}
        choice = {"index": 0, "message": message, "finish_reason": piece.finish_reason}
        return {**self._same, "object": "chat.completion", "choices": [choice], "usage": _usage(piece)}

    async def events(self, piece, pieces):
        """The events of a streamed answer, as bytes."""
        try:
            yield self._chunk({"role": "assistant", "content": piece.text})
            async for piece in pieces:
                if piece.text:
                    yield self._chunk({"content": piece.text})
        except Exception:
            yield b"data: " + _failed().body + b"\n\n"
            return
        yield self._chunk({}, piece.finish_reason)
        if self._include_usage:
            yield self._event({"choices": [], "usage": _usage(piece)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta, finish_reason=None):
        return self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def _event(self, data):
        chunk = {**self._same, "object": "chat.completion.chunk", **data}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _usage(piece):
    used = {"prompt_tokens": piece.prompt_tokens, "completion_tokens": piece.completion_tokens}
    return {**used, "total_tokens": sum(used.values())}
