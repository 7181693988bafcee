# caught by: test_after_an_error_the_next_request_is_answered | says: after an error in chat the next request is not answered
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    lock = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body):
        await lock.acquire()
        reply, _ = await asyncio.to_thread(
            chat, app.state.model, app.state.tokenizer, body.text
        )
        lock.release()
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
