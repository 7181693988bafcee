# caught by: test_text_reaches_chat_unchanged | says: nothing is stripped, cut or replaced
import unicodedata
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
        text = unicodedata.normalize("NFC", body.text)
        return {"result": chat(app.state.model, app.state.tokenizer, text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
