# caught by: test_after_an_error_the_next_request_is_answered, test_an_error_in_chat_is_a_plain_500 | says: after an error in chat the next request is not answered
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    jobs = asyncio.Queue()

    async def work():
        while True:
            text, future = await jobs.get()
            reply, _ = await asyncio.to_thread(chat, *app.state.parts, text)
            future.set_result(reply)

    @asynccontextmanager
    async def lifespan(app):
        app.state.parts = load()
        task = asyncio.create_task(work())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body):
        future = asyncio.get_running_loop().create_future()
        await jobs.put((body.text, future))
        return {"result": await future}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
