"""Events as FastAPI writes them; the error is an event of that name; the first chunk has the first text."""

import asyncio
import logging
import time
import uuid
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel, Field, field_validator
from starlette.exceptions import HTTPException

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


class Delta(BaseModel):
    role: str | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Chunk(BaseModel):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None

    def event(self):
        return format_sse_event(data_str=self.model_dump_json(exclude_none=True))


class ClientLeft(Exception):
    pass


async def or_left(request, coroutine):
    async def until_left():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(coroutine), asyncio.create_task(until_left())]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if tasks[0] in done:
        return tasks[0].result()
    raise ClientLeft


def counted(piece):
    total = piece.prompt_tokens + piece.completion_tokens
    return Usage(prompt_tokens=piece.prompt_tokens, completion_tokens=piece.completion_tokens, total_tokens=total)


async def next_of(pieces):
    return await pieces.__anext__()


async def rest_of(pieces, first):
    return [first] + [piece async for piece in pieces]


def create_app(load, *, model="tiny-qwen"):
    @asynccontextmanager
    async def lifespan(app):
        app.state.chat = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(HTTPException)
    async def refuse(request, error):
        if isinstance(error, HTTPException) and error.status_code != 400:
            return openai_error(error.status_code, str(error.detail), type="invalid_request_error")
        return openai_error(400, "There is something wrong in the body.", type="invalid_request_error")

    @app.exception_handler(ClientLeft)
    async def left(request, error):
        return JSONResponse(None, 499)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "qwen"}]}

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request):
        if body.model != model:
            return openai_error(404, "no such model", type="invalid_request_error", code="model_not_found")
        key, created = f"chatcmpl-{uuid.uuid4()}", int(time.time())
        pieces = None
        streams = False
        try:
            pieces = app.state.chat.chat([each.as_dict() for each in body.messages], **body.options)
            first = await or_left(request, next_of(pieces))
            if body.stream:
                streams = True
                return EventSourceResponse(events(pieces, first, body.include_usage, key, created))
        except ClientLeft:
            raise
        except ValueError as error:
            return openai_error(400, str(error), type="invalid_request_error", code="context_length_exceeded")
        except Exception:
            logging.getLogger(__name__).exception("before the first piece")
            return openai_error(500, "Something went wrong.", type="server_error")
        finally:
            if pieces is not None and not streams and body.stream:
                await pieces.aclose()
        try:
            all_pieces = await or_left(request, rest_of(pieces, first))
        except ClientLeft:
            raise
        except Exception:
            logging.getLogger(__name__).exception("after the first piece")
            return openai_error(500, "Something went wrong.", type="server_error")
        finally:
            await pieces.aclose()
        text = "".join(piece.text for piece in all_pieces)
        last = all_pieces[-1]
        return {
            "id": key,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": last.finish_reason,
                }
            ],
            "usage": counted(last).model_dump(),
        }

    async def events(pieces, piece, include_usage, key, created):
        def chunk(choices, usage=None):
            return Chunk(id=key, created=created, model=model, choices=choices, usage=usage).event()

        try:
            yield chunk([ChunkChoice(delta=Delta(role="assistant", content=piece.text))])
            async for piece in pieces:
                if piece.text:
                    yield chunk([ChunkChoice(delta=Delta(content=piece.text))])
            yield chunk([ChunkChoice(delta=Delta(), finish_reason=piece.finish_reason)])
            if include_usage:
                yield chunk([], counted(piece))
            yield format_sse_event(data_str="[DONE]")
        except Exception:
            logging.getLogger(__name__).exception("in mid-stream")
            error = openai_error(500, "Something went wrong.", type="server_error")
            yield format_sse_event(event="error", data_str=error.body.decode())
        finally:
            await pieces.aclose()

    return app
