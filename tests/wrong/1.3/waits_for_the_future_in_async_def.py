# caught by: test_health_answers_while_the_model_works, test_health_answers_while_64_requests_wait | says: the event loop is blocked
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(..., min_length=1, max_length=4000)


def create_app(load, chat):
    pool = ThreadPoolExecutor()

    async def lifespan(app):
        app.state.parts = load()
        yield

    from contextlib import asynccontextmanager

    app = FastAPI(lifespan=asynccontextmanager(lifespan))

    @app.post("/chat")
    async def ask(body: Body):
        future = pool.submit(chat, *app.state.parts, body.text)
        return {"result": future.result()[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
