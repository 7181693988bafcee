"""What the fork server holds ready, so that no verdict waits for an import."""

import importlib

WARM = [
    # what answers import
    "anyio.to_thread",
    "asyncio.runners",
    "concurrent.futures.thread",
    "fastapi.responses",
    "fastapi.sse",
    "fastapi.testclient",
    "httpx",
    "limits.aio.storage",
    "limits.aio.strategies",
    "openai.resources.chat.completions",
    "prometheus_client.parser",
    "psutil",
    "redis.asyncio",
    "slowapi.middleware",
    "torch",
    "transformers",
    # what is imported when an app is first served
    "encodings.idna",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    # what pytest imports when it starts
    "_pytest._argcomplete",
    "_pytest.helpconfig",
    "_pytest.junitxml",
    "_pytest.skipping",
    "_pytest.tracemalloc",
    "course.grading.fixtures",
    # what tests import
    "course.grading.runner",
    "course.grading.kit.asgi",
    "course.grading.kit.lockstep",
    "course.grading.kit.logs",
    "course.grading.kit.processes",
    "course.grading.kit.reader_cases",
    "course.grading.kit.readers",
    "course.grading.kit.scripted_chat",
    "course.grading.kit.scripted_handler",
    "course.grading.kit.scripted_slots",
    "course.grading.kit.sse",
    "course.grading.kit.tokenizers",
    "course.grading.kit.websocket",
    "unicodedata",
    "unittest.mock",
]


def warm():
    """Imports all of it, and does once what takes long the first time. Leaves no thread behind: a
    process with threads should not fork."""
    for name in WARM:
        importlib.import_module(name)
    import asyncio

    import httpx
    import openai
    import torch
    import transformers

    from course.qwen import models

    httpx.Client(verify=False).close()  # the first one imports the certificates
    openai.AsyncOpenAI(api_key="none", base_url="http://127.0.0.1")
    asyncio.run(_serve_one_event())

    transformers.utils.logging.disable_progress_bar()  # a progress bar starts a thread
    torch.set_num_threads(1)
    model, tokenizer = models.tiny()
    ids = tokenizer("你好", return_tensors="pt")
    model.generate(**ids, max_new_tokens=2, do_sample=True)
    # transformers keeps each template that it has compiled
    tokenizer.apply_chat_template([{"role": "user", "content": "你好"}])


async def _serve_one_event():
    """One request to an app with a body and a stream: much of FastAPI is imported at the first."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse
    from pydantic import BaseModel, Field

    class Body(BaseModel):
        text: str = Field(min_length=1)

    app = FastAPI()

    @app.post("/", response_class=EventSourceResponse)
    async def event(body: Body):
        yield body

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    scope |= {"asgi": {"spec_version": "2.4"}, "headers": [(b"content-type", b"application/json")]}

    async def receive():
        return {"type": "http.request", "body": b'{"text": "hi"}'}

    async def send(message):
        pass

    await app(scope, receive, send)
