"""No models: the body is a dict and a dataclass of what was asked; a BackgroundTask closes the pieces."""

import asyncio
import json
import logging
import time
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask


class Refused(Exception):
    def __init__(self, status, message, param=None, code=None, type="invalid_request_error"):
        self.status = status
        self.error = {"message": message, "type": type, "param": param, "code": code}


def number(body, name, kinds, fits):
    value = body.get(name)
    if value is not None and (type(value) not in kinds or not fits(value)):
        raise Refused(400, f"{name} is wrong", name)
    return value


@dataclass
class Asked:
    model: str
    messages: list
    options: dict
    stream: bool
    include_usage: bool


def text_of(content):
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, "content is a string or a list of parts", "messages")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise Refused(400, "parts are text here", "messages")
    return "".join(part["text"] for part in content)


def flag(body, name):
    value = body.get(name)
    if value not in (None, True, False):
        raise Refused(400, f"{name} is true or false", name)
    return bool(value)


def asked(data):
    try:
        body = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not an object")
    if not isinstance(body.get("model"), str):
        raise Refused(400, "model is missing", "model")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is a list of at least one", "messages")
    clean = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise Refused(400, "a message has a role and a content", "messages")
        clean.append({"role": message["role"], "content": text_of(message.get("content"))})
    limits = [number(body, each, (int,), lambda n: n >= 1) for each in ("max_completion_tokens", "max_tokens")]
    options = {"max_tokens": limits[0] or limits[1], "seed": number(body, "seed", (int,), lambda n: True)}
    temperature = number(body, "temperature", (int, float), lambda n: 0 <= n <= 2)
    top_p = number(body, "top_p", (int, float), lambda n: 0 < n <= 1)
    if temperature is not None:
        options["temperature"] = temperature
    if top_p is not None:
        options["top_p"] = top_p
    number(body, "n", (int,), lambda n: n == 1)
    stop = body.get("stop")
    if stop is not None:
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) and s for s in stop):
            raise Refused(400, "stop is up to four strings", "stop")
        options["stop"] = tuple(stop)
    stream_options = body.get("stream_options")
    if stream_options is not None and not isinstance(stream_options, dict):
        raise Refused(400, "stream_options is an object", "stream_options")
    include_usage = flag(stream_options or {}, "include_usage")
    return Asked(body["model"], clean, options, flag(body, "stream"), include_usage)


async def first_of(tasks):
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def create_app(load, *, model="tiny-qwen"):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model = load()
        yield

    app = FastAPI(lifespan=lifespan, docs_url=None)

    @app.exception_handler(Refused)
    async def refused(request, error):
        return JSONResponse({"error": error.error}, error.status)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "x", "created": 3}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        what = asked(await request.body())
        if what.model != model:
            raise Refused(404, f"{what.model} is not here", "model", "model_not_found")
        same = {"id": "chatcmpl-" + uuid.uuid4().hex[:24], "created": int(time.time()), "model": model}
        failed = Refused(500, "the model failed", type="server_error")
        try:
            pieces = app.state.model.chat(what.messages, **what.options)
        except ValueError as error:
            raise Refused(400, str(error), "messages", "context_length_exceeded") from None
        except Exception:
            logging.exception("chat")
            raise failed from None
        got = []

        async def read(most):
            async for piece in pieces:
                got.append(piece)
                if len(got) == most:
                    return

        gone = asyncio.create_task(request.receive())
        try:
            reading = asyncio.create_task(read(1))
            await first_of([reading, gone])
            if reading.done() and not what.stream:
                reading.result()
                reading = asyncio.create_task(read(None))
                await first_of([reading, gone])
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
                await pieces.aclose()
                return Response()
            reading.result()
        except ValueError as error:
            if got:
                logging.exception("chat")
                raise failed from None
            raise Refused(400, str(error), "messages", "context_length_exceeded") from None
        except Exception:
            logging.exception("chat")
            raise failed from None
        finally:
            gone.cancel()

        def usage():
            last = got[-1]
            total = last.prompt_tokens + last.completion_tokens
            return {
                "prompt_tokens": last.prompt_tokens,
                "completion_tokens": last.completion_tokens,
                "total_tokens": total,
            }

        if not what.stream:
            text = "".join(piece.text for piece in got)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            choice["finish_reason"] = got[-1].finish_reason
            return {"object": "chat.completion", **same, "choices": [choice], "usage": usage()}

        def event(choices, **more):
            data = {"object": "chat.completion.chunk", **same, "choices": choices, **more}
            return f"data: {json.dumps(data)}\n\n"

        def chunk(**delta):
            return event([{"index": 0, "delta": delta, "finish_reason": None}])

        async def events():
            yield chunk(role="assistant", content=got[0].text)
            try:
                async for piece in pieces:
                    got.append(piece)
                    yield chunk(content=piece.text)
            except Exception:
                logging.exception("chat")
                yield f"event: error\ndata: {json.dumps({'error': failed.error})}\n\n"
                return
            yield event([{"index": 0, "delta": {}, "finish_reason": got[-1].finish_reason}])
            if what.include_usage:
                yield event([], usage=usage())
            yield "data: [DONE]\n\n"

        closing = BackgroundTask(pieces.aclose)
        return StreamingResponse(events(), media_type="text/event-stream", background=closing)

    return app
