# a right answer: what waits is answered in batches; errors are carried to the request that they belong to
import asyncio
import logging
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


class Batcher:
    def __init__(self, model, tokenizer, chat):
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.waiting, self.arrived = [], asyncio.Event()

    async def run(self):
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            batch, self.waiting = self.waiting, []
            replies = await asyncio.to_thread(self.answer, [text for text, _ in batch])
            for (_, future), reply in zip(batch, replies, strict=True):
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    def answer(self, texts):
        replies = []
        for text in texts:
            try:
                replies.append(self.chat(self.model, self.tokenizer, text)[0])
            except Exception as error:
                replies.append(error)
        return replies

    async def ask(self, text):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((text, future))
        self.arrived.set()
        return await future


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.batcher = Batcher(*load(), chat)
        task = asyncio.create_task(app.state.batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(body: Body):
        try:
            return {"result": await app.state.batcher.ask(body.text)}
        except Exception:
            logging.getLogger("chat").exception("no answer to %d characters", len(body.text))
            return JSONResponse({"error": {"message": "The model is out of order."}}, 500)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
