# caught by: test_an_error_in_chat_is_a_plain_500 | says: the status is 500, not 422
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class Body(BaseModel):
    text: str


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        try:
            if not 1 <= len(body.text) <= 4000:
                raise ValueError
            reply, _ = chat(app.state.model, app.state.tokenizer, body.text)
        except ValueError:
            raise HTTPException(422, "text must have 1 to 4000 characters") from None
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
