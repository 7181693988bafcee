# caught by: test_no_history_is_kept | says: /chat keeps a history
import threading
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        app.state.history = []
        yield

    app = FastAPI(lifespan=lifespan)
    lock = threading.Lock()

    @app.post("/chat")
    def ask(body: Body):
        with lock:
            reply, app.state.history = chat(
                app.state.model, app.state.tokenizer, body.text, app.state.history
            )
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
