"""A task reads the pieces into a queue; whoever leaves has the task cancelled."""

import asyncio
import contextlib
import json
import logging
import time
import uuid
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


END = object()


class Reading:
    """One answer that a task of its own reads; `events` has its pieces, then an error or END."""

    def __init__(self, chat_model, body):
        self.events = asyncio.Queue()
        self.task = asyncio.create_task(self.read(chat_model, body))

    async def read(self, chat_model, body):
        try:
            messages = [message.as_dict() for message in body.messages]
            async with contextlib.aclosing(chat_model.chat(messages, **body.options)) as pieces:
                async for piece in pieces:
                    self.events.put_nowait(piece)
            self.events.put_nowait(END)
        except Exception as error:
            logging.exception("the chat model failed")
            self.events.put_nowait(error)

    async def stop(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def watch(request, reading):
    """Waits for the client to leave, and stops the reading then."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            reading.task.cancel()
            reading.events.put_nowait(None)
            return


def create_app(load, *, model="tiny-qwen"):
    state = {}

    @contextlib.asynccontextmanager
    async def lifespan(app):
        state["model"] = await asyncio.to_thread(load)
        yield
        state.clear()

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        first = error.errors()[0]
        where = "/".join(str(each) for each in first["loc"])
        return openai_error(400, f"{where}: {first['msg']}", type="invalid_request_error", param=where)

    @app.exception_handler(400)
    async def unreadable(request, error):
        return openai_error(400, "The body is not JSON.", type="invalid_request_error")

    @app.get("/v1/models")
    def models():
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 1, "owned_by": "me"}]}

    @app.post("/v1/chat/completions")
    async def complete(body: ChatRequest, request: Request):
        if body.model != model:
            return openai_error(404, "unknown model", type="invalid_request_error", param="model", code="model_not_found")
        reading = Reading(state["model"], body)
        watching = asyncio.create_task(watch(request, reading))
        same = {"id": "chatcmpl-" + uuid.uuid4().hex, "created": int(time.time()), "model": model}
        first = await reading.events.get()
        if first is None:
            await reading.stop()
            return Response(status_code=499)
        if isinstance(first, ValueError):
            watching.cancel()
            return openai_error(400, str(first), type="invalid_request_error", code="context_length_exceeded")
        if isinstance(first, Exception):
            watching.cancel()
            return openai_error(500, "internal error", type="server_error")
        if body.stream:
            # the response itself listens for the disconnect from here on
            watching.cancel()
            return StreamingResponse(
                stream(reading, first, same, body.include_usage), media_type="text/event-stream"
            )
        texts, last, event = [first.text], first, first
        while event is not END:
            event = await reading.events.get()
            if event is None:
                await reading.stop()
                return Response(status_code=499)
            if isinstance(event, Exception):
                watching.cancel()
                return openai_error(500, "internal error", type="server_error")
            if event is not END:
                texts.append(event.text)
                last = event
        watching.cancel()
        message = {"role": "assistant", "content": "".join(texts)}
        choices = [{"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}]
        return {**same, "object": "chat.completion", "choices": choices, "usage": usage_of(last)}

    return app


async def stream(reading, first, same, include_usage):
    def event(**fields):
        return "data: " + json.dumps({**same, "object": "chat.completion.chunk", **fields}) + "\n\n"

    def chunk(delta, reason=None):
        return event(choices=[{"index": 0, "delta": delta, "finish_reason": reason}])

    try:
        yield chunk({"role": "assistant", "content": ""})
        piece = first
        while True:
            if piece.text:
                yield chunk({"content": piece.text})
            last, piece = piece, await reading.events.get()
            if isinstance(piece, Exception):
                error = {"message": "internal error", "type": "server_error", "param": None, "code": None}
                yield f"data: {json.dumps({'error': error})}\n\n"
                return
            if piece is END:
                break
        yield chunk({}, last.finish_reason)
        if include_usage:
            yield event(choices=[], usage=usage_of(last))
        yield "data: [DONE]\n\n"
    finally:
        await reading.stop()


def usage_of(piece):
    return {
        "prompt_tokens": piece.prompt_tokens,
        "completion_tokens": piece.completion_tokens,
        "total_tokens": piece.prompt_tokens + piece.completion_tokens,
    }
