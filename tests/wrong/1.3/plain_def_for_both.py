# caught by: test_health_answers_while_64_requests_wait | says: it waits for a thread of a pool that is all taken
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Question(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(question: Question):
        reply, _ = chat(app.state.model, app.state.tokenizer, question.text)
        return {"result": reply}

    @app.get("/health")
    def health():
        return {"status": "ok"}

    return app
