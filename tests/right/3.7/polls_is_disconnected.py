"""A second task asks now and then whether the client is still there, and cancels the first."""

import asyncio
import json
import logging
import time
from contextlib import asynccontextmanager
from itertools import count
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


log = logging.getLogger("chat")
numbers = count(1)
EVERY_S = 0.02


async def cancel_when_left(request, task):
    while not task.done():
        if await request.is_disconnected():
            task.cancel()
        await asyncio.sleep(EVERY_S)


async def guarded(request, coroutine):
    """Runs it as a task; None if the client left."""
    task = asyncio.create_task(coroutine)
    watcher = asyncio.create_task(cancel_when_left(request, task))
    try:
        return await task
    except asyncio.CancelledError:
        if asyncio.current_task().cancelling():
            raise
        return None
    finally:
        watcher.cancel()


def bad(message, code=None, status=400):
    return openai_error(status, message, type="invalid_request_error", code=code)


def create_app(load, *, model="tiny-qwen"):
    chat_model = None

    @asynccontextmanager
    async def lifespan(app):
        nonlocal chat_model
        chat_model = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request, exc):
        return bad("; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in exc.errors())[:500])

    @app.exception_handler(400)
    async def on_400(request, exc):
        return bad("cannot read the body")

    @app.get("/v1/models")
    async def list_models():
        card = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "course"}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions")
    async def endpoint(req: ChatRequest, request: Request):
        if req.model != model:
            return bad(f"model {req.model} does not exist", "model_not_found", 404)
        base = {"id": f"chatcmpl-{next(numbers)}-{time.time_ns()}", "created": int(time.time()), "model": model}
        try:
            answer = chat_model.chat([m.as_dict() for m in req.messages], **req.options)
        except ValueError as exc:
            return bad(str(exc), "context_length_exceeded")
        except Exception:
            log.exception("chat")
            return openai_error(500, "the model failed", type="server_error")

        async def first_piece():
            async for piece in answer:
                return piece

        try:
            first = await guarded(request, first_piece())
        except ValueError as exc:
            return bad(str(exc), "context_length_exceeded")
        except Exception:
            log.exception("chat")
            return openai_error(500, "the model failed", type="server_error")
        if first is None:
            await answer.aclose()
            return Response()
        if req.stream:
            return StreamingResponse(sse(answer, first, base, req.include_usage), media_type="text/event-stream")

        async def collect():
            parts, last = [first.text], first
            async for last in answer:
                parts.append(last.text)
            return "".join(parts), last

        try:
            collected = await guarded(request, collect())
        except Exception:
            log.exception("chat")
            return openai_error(500, "the model failed", type="server_error")
        finally:
            await answer.aclose()
        if collected is None:
            return Response()
        text, last = collected
        return JSONResponse(
            {
                **base,
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": last.finish_reason,
                        "message": {"role": "assistant", "content": text},
                    }
                ],
                "usage": usage(last),
            }
        )

    return app


def usage(p):
    return dict(
        prompt_tokens=p.prompt_tokens,
        completion_tokens=p.completion_tokens,
        total_tokens=p.prompt_tokens + p.completion_tokens,
    )


async def sse(answer, piece, base, include_usage):
    def data(choices, **more):
        return f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': choices, **more}, ensure_ascii=False)}\n\n"

    more = {"usage": None} if include_usage else {}
    try:
        yield data([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}], **more)
        while True:
            if piece.text:
                yield data([{"index": 0, "delta": {"content": piece.text}, "finish_reason": None}], **more)
            if piece.finish_reason:
                break
            piece = await anext(answer)
        yield data([{"index": 0, "delta": {}, "finish_reason": piece.finish_reason}], **more)
        if include_usage:
            yield data([], usage=usage(piece))
        yield "data: [DONE]\n\n"
    except Exception:
        log.exception("chat")
        yield "event: error\ndata: " + openai_error(500, "the model failed", type="server_error").body.decode() + "\n\n"
    finally:
        await answer.aclose()
