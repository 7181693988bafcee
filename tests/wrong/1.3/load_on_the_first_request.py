# caught by: test_start_up_loads_the_model_once | says: start-up does not call load
import functools
import threading

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    app = FastAPI()
    lock = threading.Lock()
    load_once = functools.lru_cache(maxsize=1)(load)

    def get_parts():
        with lock:
            return load_once()

    @app.post("/chat")
    def ask(body: Body):
        model, tokenizer = get_parts()
        return {"result": chat(model, tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
