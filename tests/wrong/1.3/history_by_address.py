# caught by: test_no_history_is_kept | says: /chat keeps a history
import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    histories = defaultdict(list)

    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body, request: Request):
        address = request.client.host
        reply, histories[address] = await asyncio.to_thread(
            chat, app.state.model, app.state.tokenizer, body.text, history=histories[address]
        )
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
