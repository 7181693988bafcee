# caught by: test_a_text_has_1_to_4000_code_points | says: a text of 4001 letters is too long
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1)


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
