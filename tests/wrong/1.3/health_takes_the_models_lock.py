# caught by: test_health_answers_while_the_model_works, test_health_answers_while_64_requests_wait | says: /health waits its turn behind /chat
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
        async with lock:
            reply, _ = await asyncio.to_thread(
                chat, app.state.model, app.state.tokenizer, body.text
            )
        return {"result": reply}

    @app.get("/health")
    async def health():
        async with lock:
            return {"status": "ok" if app.state.model else "loading"}

    return app
