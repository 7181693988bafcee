# caught by: test_64_requests_at_once_get_their_answers | says: was refused
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
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
        if lock.locked():
            raise HTTPException(503, "The model is busy, try again later.")
        async with lock:
            reply, _ = await asyncio.to_thread(
                chat, app.state.model, app.state.tokenizer, body.text
            )
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
