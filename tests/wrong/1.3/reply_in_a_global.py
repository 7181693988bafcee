# caught by: test_64_requests_at_once_get_their_answers | says: requests at once mix
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field

reply = None


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
        global reply
        reply, history = chat(app.state.model, app.state.tokenizer, body.text)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
