# caught by: test_a_text_has_1_to_4000_code_points | says: a text of 4000 emoji is allowed
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Body(BaseModel):
    text: str


def length(text):
    """As JavaScript counts it, so that the browser and the server agree."""
    return len(text.encode("utf-16-le")) // 2


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        if not 1 <= length(body.text) <= 4000:
            raise HTTPException(422, "text must have 1 to 4000 characters")
        return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
