# a right answer: a task on the event loop works through an asyncio.Queue and awaits a thread for each answer
import asyncio
import contextlib
import logging

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Question(BaseModel):
    text: str = Field(..., min_length=1, max_length=4000)


def create_app(load, chat):
    waiting = asyncio.Queue()

    async def work(model, tokenizer):
        while True:
            text, answer = await waiting.get()
            try:
                result = await asyncio.to_thread(chat, model, tokenizer, text)
            except Exception as error:
                logging.getLogger("chat").warning("no answer: %r", error)
                answer.set_result(None)
            else:
                answer.set_result(result[0])

    @contextlib.asynccontextmanager
    async def lifespan(app):
        worker = asyncio.create_task(work(*load()))
        yield
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(question: Question):
        answer = asyncio.get_running_loop().create_future()
        await waiting.put((question.text, answer))
        reply = await answer
        if reply is None:
            raise HTTPException(500)
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
