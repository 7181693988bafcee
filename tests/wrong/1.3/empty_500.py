# caught by: test_an_error_in_chat_is_a_plain_500 | says: the 500 has no body
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
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
        try:
            return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}
        except Exception:
            return Response(status_code=500)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
