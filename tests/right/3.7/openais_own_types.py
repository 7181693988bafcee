"""Answers are OpenAI's own models; scopes of anyio end what nobody waits for."""

import logging
import time
import uuid
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Literal

import anyio
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from openai.types import CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, Field, ValidationError, field_validator

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


@asynccontextmanager
async def while_connected(request):
    """Cancels its block when the client leaves."""
    async with anyio.create_task_group() as tasks:

        async def watch():
            while (await request.receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        yield
        tasks.cancel_scope.cancel()


def usage_of(piece):
    return CompletionUsage(
        prompt_tokens=piece.prompt_tokens,
        completion_tokens=piece.completion_tokens,
        total_tokens=piece.prompt_tokens + piece.completion_tokens,
    )


def create_app(load, *, model="tiny-qwen"):
    app = FastAPI()

    @asynccontextmanager
    async def lifespan(app):
        app.state.chat_model = load()
        yield

    app.router.lifespan_context = lifespan

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [Model(id=model, object="model", created=0, owned_by="me").model_dump()]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request):
        try:
            body = ChatRequest.model_validate_json(await request.body())
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            return openai_error(400, problem["msg"], type="invalid_request_error", param=str(problem["loc"]))
        if body.model != model:
            return openai_error(404, body.model, type="invalid_request_error", param="model", code="model_not_found")
        answer = Answer(model, body)
        failure = []
        try:
            answer.pieces = app.state.chat_model.chat([each.as_dict() for each in body.messages], **body.options)
            async with while_connected(request):
                try:
                    await answer.step()
                    while not body.stream and answer.last.finish_reason is None:
                        await answer.step()
                except Exception as error:  # a group of anyio's would wrap it
                    failure.append(error)
            if failure:
                raise failure[0]
        except ValueError as error:
            if answer.last is None:
                message = str(error)
                return openai_error(400, message, type="invalid_request_error", code="context_length_exceeded")
            logging.exception("after the first piece")
            return openai_error(500, "failed", type="server_error")
        except Exception:
            logging.exception("failed")
            return openai_error(500, "failed", type="server_error")
        if answer.last is None or (not body.stream and answer.last.finish_reason is None):
            with anyio.CancelScope(shield=True):
                await answer.pieces.aclose()
            return Response()
        if body.stream:
            return StreamingResponse(answer.events(), media_type="text/event-stream")
        return Response(answer.completion(), media_type="application/json")

    return app


class Answer:
    def __init__(self, model, body):
        self.same = {"id": str(uuid.uuid4()), "created": int(time.time()), "model": model}
        self.include_usage = body.include_usage
        self.texts, self.last, self.pieces = [], None, None

    async def step(self):
        self.last = await self.pieces.__anext__()
        self.texts.append(self.last.text)

    def completion(self):
        message = {"role": "assistant", "content": "".join(self.texts), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.last.finish_reason, "logprobs": None}
        return ChatCompletion.model_validate(
            {**self.same, "object": "chat.completion", "choices": [choice], "usage": usage_of(self.last)}
        ).model_dump_json()

    def chunk(self, choices, **more):
        data = {**self.same, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {ChatCompletionChunk.model_validate(data).model_dump_json(exclude_unset=True)}\n\n"

    async def events(self):
        async with aclosing(self.pieces):
            delta = {"role": "assistant", "content": self.last.text}
            yield self.chunk([{"index": 0, "delta": delta, "finish_reason": None}])
            try:
                while self.last.finish_reason is None:
                    await self.step()
                    if self.last.text:
                        delta = {"content": self.last.text}
                        yield self.chunk([{"index": 0, "delta": delta, "finish_reason": None}])
            except Exception:
                logging.exception("in mid-stream")
                yield f"data: {openai_error(500, 'failed', type='server_error').body.decode()}\n\n"
                return
            yield self.chunk([{"index": 0, "delta": {}, "finish_reason": self.last.finish_reason}])
            if self.include_usage:
                yield self.chunk([], usage=usage_of(self.last))
            yield "data: [DONE]\n\n"
