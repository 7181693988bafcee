# caught by: test_64_requests_at_once_get_their_answers | says: was refused
from contextlib import asynccontextmanager
from threading import Lock

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    parts, under_way, lock = [], set(), Lock()

    @asynccontextmanager
    async def lifespan(app):
        parts.extend(load())
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def post_chat(message: Message):
        with lock:
            if message.text in under_way:
                raise HTTPException(409, "This is being answered already.")
            under_way.add(message.text)
        try:
            return {"result": chat(*parts, message.text)[0]}
        except Exception:
            raise HTTPException(500, "No answer this time.") from None
        finally:
            under_way.discard(message.text)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
