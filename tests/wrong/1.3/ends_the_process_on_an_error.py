# caught by: test_an_error_in_chat_is_a_plain_500, test_after_an_error_the_next_request_is_answered | says: the answer's process ended in the middle
import logging
import os
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
        try:
            return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}
        except Exception:
            logging.exception("the model is broken; the supervisor will start me again")
            os._exit(1)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
