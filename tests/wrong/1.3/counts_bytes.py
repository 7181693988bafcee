# caught by: test_a_text_has_1_to_4000_code_points | says: a text of 4000 Chinese ideographs is allowed
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, field_validator


class Body(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def not_too_long(cls, text):
        if not 1 <= len(text.encode("utf-8")) <= 4000:
            raise ValueError("text is empty or too long")
        return text


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
