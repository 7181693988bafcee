# caught by: test_64_requests_at_once_get_their_answers | says: was refused
import queue
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    jobs = queue.Queue(maxsize=32)

    def work(model, tokenizer):
        while (job := jobs.get()) is not None:
            text, future = job
            try:
                future.set_result(chat(model, tokenizer, text)[0])
            except Exception as error:
                future.set_exception(error)

    @asynccontextmanager
    async def lifespan(app):
        threading.Thread(target=work, args=load(), daemon=True).start()
        yield
        jobs.put(None)

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body):
        import asyncio

        future = Future()
        try:
            jobs.put_nowait((body.text, future))
        except queue.Full:
            raise HTTPException(429, "Too many requests.") from None
        return {"result": await asyncio.wrap_future(future)}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
