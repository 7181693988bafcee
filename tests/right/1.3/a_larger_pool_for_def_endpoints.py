# a right answer: both endpoints are plain def, and start-up makes FastAPI's thread pool large enough for all
import threading
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    one_at_a_time = threading.Lock()

    @asynccontextmanager
    async def lifespan(app):
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1000
        yield {"parts": load()}

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body, request: Request):
        with one_at_a_time:
            reply, _ = chat(*request.state.parts, body.text, history=[], max_new_tokens=128)
        return {"result": reply}

    @app.get("/health")
    def health():
        return {"status": "ok"}

    return app
