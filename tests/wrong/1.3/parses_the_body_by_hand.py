# caught by: test_other_bodies_are_422 | says: it is the sender's mistake
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(request: Request):
        data = await request.json()
        text = data.get("text")
        if not isinstance(text, str) or not 1 <= len(text) <= 4000:
            raise HTTPException(422, "text has to be a string of 1 to 4000 characters")
        reply, _ = await asyncio.to_thread(chat, app.state.model, app.state.tokenizer, text)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
