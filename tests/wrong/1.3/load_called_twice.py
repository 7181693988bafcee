# caught by: test_start_up_loads_the_model_once | says: load is to be called once
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model = load()[0]
        app.state.tokenizer = load()[1]
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
