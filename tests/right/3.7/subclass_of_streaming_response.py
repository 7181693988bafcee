"""A response class of its own that closes the pieces however it ends; usage null in all chunks but the last."""

import asyncio
import json
import logging
import secrets
import time
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, field_validator

Text = Annotated[str, Field(min_length=0)]
"""Any constraint makes pydantic look at the characters: half a surrogate is refused."""


class TextPart(BaseModel):
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text | list[TextPart]

    def as_dict(self):
        """{"role", "content"} with the content as one string."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. Fields that it does not name are ignored, and null is as
    if left out, but for `model` and `messages`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: Literal[1] | None = None
    stop: Text | list[Text] | None = None
    seed: int | None = None
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
        """The keyword arguments of `chat`, defaults filled in."""
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


def openai_error(status, message, *, type, param=None, code=None):
    """A JSON response in the form of OpenAI's errors; `.body` holds its bytes."""
    error = {"message": message, "type": type, "param": param, "code": code}
    return JSONResponse({"error": error}, status)


class Events(StreamingResponse):
    """Streams the chunks of an answer whose first piece is there."""

    media_type = "text/event-stream"

    def __init__(self, head, first, pieces, include_usage):
        self.head, self.pieces, self.include_usage = head, pieces, include_usage
        super().__init__(self.chunks(first), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            await asyncio.shield(self.pieces.aclose())

    def event(self, choices, usage=None):
        data = {**self.head, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return b"data:" + json.dumps(data, separators=(",", ":")).encode() + b"\r\n\r\n"

    async def chunks(self, piece):
        yield self.event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
        try:
            while piece.finish_reason is None:
                yield self.event([{"index": 0, "delta": {"content": piece.text}}])
                piece = await self.pieces.__anext__()
        except Exception:
            logging.exception("the stream broke off")
            yield b"data: %s\n\n" % openai_error(500, "The server failed.", type="server_error").body
            return
        if piece.text:
            yield self.event([{"index": 0, "delta": {"content": piece.text}}])
        yield self.event([{"index": 0, "delta": {}, "finish_reason": piece.finish_reason}])
        if self.include_usage:
            yield self.event([], counts(piece))
        yield b"data: [DONE]\n\n"


def counts(piece):
    prompt, completion = piece.prompt_tokens, piece.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def create_app(load, *, model="tiny-qwen"):
    app = FastAPI()
    app.state.chat_model = None

    @asynccontextmanager
    async def lifespan(app):
        app.state.chat_model = load()
        yield {"loaded": True}

    app.router.lifespan_context = lifespan

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request, error):
        return openai_error(400, "wrong body", type="invalid_request_error")

    @app.exception_handler(400)
    async def no_json(request, error):
        return openai_error(400, "not JSON", type="invalid_request_error", code="not_json")

    @app.get("/v1/models")
    async def models():
        return JSONResponse({"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": ""}]})

    @app.post("/v1/chat/completions")
    async def completions(request: Request, body: ChatRequest):
        if body.model != model:
            return openai_error(404, "this server has another model", type="invalid_request_error", code="model_not_found")
        head = {"id": secrets.token_hex(12), "created": round(time.time()), "model": model}
        gone = asyncio.create_task(request.receive())
        pieces, streams = None, False
        begun = False
        try:
            pieces = app.state.chat_model.chat([each.as_dict() for each in body.messages], **body.options)
            texts, piece = [], None
            while piece is None or piece.finish_reason is None:
                step = asyncio.ensure_future(pieces.__anext__())
                await asyncio.wait([step, gone], return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    await asyncio.wait([step])
                    return Response(status_code=204)
                piece = step.result()
                begun = True
                texts.append(piece.text)
                if body.stream:
                    streams = True
                    return Events(head, piece, pieces, body.include_usage)
        except Exception as error:
            if isinstance(error, ValueError) and not begun:
                return openai_error(400, "too long", type="invalid_request_error", code="context_length_exceeded")
            logging.exception("no answer")
            return openai_error(500, "The server failed.", type="server_error")
        finally:
            gone.cancel()
            if pieces is not None and not streams:
                await pieces.aclose()
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(texts)}}
        choice["finish_reason"] = piece.finish_reason
        return {**head, "object": "chat.completion", "choices": [choice], "usage": counts(piece)}

    return app
