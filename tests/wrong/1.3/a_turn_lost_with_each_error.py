# caught by: test_after_an_error_the_next_request_is_answered | says: after an error in chat the next request is not answered
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field


class Question(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    turns = asyncio.Semaphore(4)

    @asynccontextmanager
    async def lifespan(app):
        app.state.loaded = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.post("/chat")
    async def answer(question: Question):
        await turns.acquire()
        try:
            reply, _ = await asyncio.to_thread(chat, *app.state.loaded, question.text)
        except Exception:
            return PlainTextResponse("Something went wrong.", status_code=500)
        turns.release()
        return {"result": reply}

    return app
