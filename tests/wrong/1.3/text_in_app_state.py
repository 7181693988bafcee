# caught by: test_64_requests_at_once_get_their_answers, test_after_an_error_the_next_request_is_answered | says: requests at once mix
import asyncio
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
    busy = asyncio.Lock()

    def answer():
        return chat(app.state.model, app.state.tokenizer, app.state.text)[0]

    @app.post("/chat")
    async def ask(body: Body):
        app.state.text = body.text
        async with busy:
            return {"result": await asyncio.to_thread(answer)}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
