# caught by: test_health_answers_while_the_model_works, test_health_answers_while_64_requests_wait | says: a blocking call inside async def
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Question(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    state = {}

    @asynccontextmanager
    async def lifespan(app):
        state["model"], state["tokenizer"] = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(question: Question):
        reply, _ = chat(state["model"], state["tokenizer"], question.text)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
