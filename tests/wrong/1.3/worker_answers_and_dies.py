# caught by: test_after_an_error_the_next_request_is_answered | says: after an error in chat the next request is not answered
import queue
import threading
from concurrent.futures import Future
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class ChatRequest(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    todo = queue.Queue()

    def worker(model, tokenizer):
        while True:
            text, future = todo.get()
            try:
                future.set_result(chat(model, tokenizer, text)[0])
            except Exception as error:
                future.set_exception(error)
                raise

    @asynccontextmanager
    async def lifespan(app):
        threading.Thread(target=worker, args=load(), daemon=True).start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.post("/chat")
    def post_chat(request: ChatRequest):
        future = Future()
        todo.put((request.text, future))
        try:
            return {"result": future.result()}
        except Exception:
            raise HTTPException(500, "The model could not answer.") from None

    return app
