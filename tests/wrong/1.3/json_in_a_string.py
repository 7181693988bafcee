# caught by: test_post_chat_answers | says: not with this JSON
import json
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        reply, _ = chat(app.state.model, app.state.tokenizer, body.text)
        return json.dumps({"result": reply}, ensure_ascii=False)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
