"""The endpoint speaks ASGI itself: it reads the body, listens and sends; one task reads the pieces."""

import asyncio
import json
import logging
import time
import uuid
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError, field_validator
from starlette.routing import Route

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


class Completions:
    """POST /v1/chat/completions as an ASGI app."""

    def __init__(self, app, model):
        self.app, self.model = app, model

    async def __call__(self, scope, receive, send):
        data = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            data += message.get("body", b"")
            if not message.get("more_body"):
                break
        try:
            body = ChatRequest.model_validate(json.loads(data.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            param = None
            if isinstance(error, ValidationError):
                param = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else None
            response = openai_error(400, "the body is wrong", type="invalid_request_error", param=param)
            return await response(scope, receive, send)
        if body.model != self.model:
            response = openai_error(404, "no such model", type="invalid_request_error", code="model_not_found")
            return await response(scope, receive, send)
        answering = asyncio.create_task(self.answer(body, scope, receive, send))
        listening = asyncio.create_task(self.listen(receive))
        try:
            await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            listening.cancel()
            answering.cancel()
            await asyncio.gather(answering, listening, return_exceptions=True)

    async def listen(self, receive):
        while (await receive())["type"] != "http.disconnect":
            pass

    async def answer(self, body, scope, receive, send):
        same = {"id": f"chatcmpl-{uuid.uuid1().hex}", "created": int(time.time()), "model": self.model}
        texts, last = [], None

        async def event(choices, **more):
            data = {**same, "object": "chat.completion.chunk", "choices": choices, **more}
            await self.event(send, json.dumps(data))

        try:
            messages = [message.as_dict() for message in body.messages]
            async with aclosing(self.app.state.chat_model.chat(messages, **body.options)) as pieces:
                async for piece in pieces:
                    if body.stream and last is None:
                        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
                        await send({"type": "http.response.start", "status": 200, "headers": headers})
                        await event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
                    if body.stream and piece.text:
                        await event([{"index": 0, "delta": {"content": piece.text}, "finish_reason": None}])
                    texts.append(piece.text)
                    last = piece
        except Exception as error:
            early = last is None
            if early and isinstance(error, ValueError):
                response = openai_error(400, str(error), type="invalid_request_error", code="context_length_exceeded")
                return await response(scope, receive, send)
            logging.exception("the chat model failed")
            response = openai_error(500, "the model failed", type="server_error")
            if early or not body.stream:
                return await response(scope, receive, send)
            await self.event(send, response.body.decode())
            return await send({"type": "http.response.body", "body": b""})
        used = {"prompt_tokens": last.prompt_tokens, "completion_tokens": last.completion_tokens}
        used["total_tokens"] = used["prompt_tokens"] + used["completion_tokens"]
        if not body.stream:
            message = {"role": "assistant", "content": "".join(texts)}
            choices = [{"index": 0, "message": message, "finish_reason": last.finish_reason}]
            response = JSONResponse({**same, "object": "chat.completion", "choices": choices, "usage": used})
            return await response(scope, receive, send)
        await event([{"index": 0, "delta": {}, "finish_reason": last.finish_reason}])
        if body.include_usage:
            await event([], usage=used)
        await self.event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def event(self, send, data):
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def create_app(load, *, model="tiny-qwen"):
    @asynccontextmanager
    async def lifespan(app):
        app.state.chat_model = load()
        yield

    app = FastAPI(lifespan=lifespan)
    app.router.routes.append(Route("/v1/chat/completions", Completions(app, model), methods=["POST"]))

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "nobody"}]}

    return app
