# caught by: test_health_answers_while_64_requests_wait | says: it waits for a thread of a pool that is all taken
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, constr


def create_app(load, chat):
    parts = []

    @asynccontextmanager
    async def lifespan(app):
        parts.extend(await asyncio.to_thread(load))
        yield

    app = FastAPI(lifespan=lifespan)

    class Body(BaseModel):
        text: constr(min_length=1, max_length=4000)

    @app.post("/chat")
    async def ask(body: Body):
        reply, _ = await asyncio.to_thread(chat, *parts, body.text)
        return {"result": reply}

    def status():
        return "ok" if parts else "loading"

    @app.get("/health")
    async def health():
        return {"status": await asyncio.to_thread(status)}

    return app
