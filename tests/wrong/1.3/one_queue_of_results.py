# caught by: test_64_requests_at_once_get_their_answers, test_after_an_error_the_next_request_is_answered | says: requests at once mix
import queue
import threading
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    jobs, results = queue.Queue(), queue.Queue()

    def work(model, tokenizer):
        while True:
            try:
                results.put(chat(model, tokenizer, jobs.get())[0])
            except Exception:
                results.put(None)

    @asynccontextmanager
    async def lifespan(app):
        threading.Thread(target=work, args=load(), daemon=True).start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        jobs.put(body.text)
        result = results.get()
        if result is None:
            raise HTTPException(500, "no answer")
        return {"result": result}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
