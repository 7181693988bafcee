# caught by: test_start_up_loads_the_model_once | says: create_app calls load itself
from concurrent.futures import ThreadPoolExecutor
from asyncio import get_running_loop

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    app = FastAPI()
    model, tokenizer = load()
    executor = ThreadPoolExecutor(1)

    @app.post("/chat")
    async def ask(body: Body):
        reply, _ = await get_running_loop().run_in_executor(
            executor, chat, model, tokenizer, body.text
        )
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
