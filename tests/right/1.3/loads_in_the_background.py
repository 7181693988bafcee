# a right answer: start-up only begins to load; requests wait for the model, and /health does not
import asyncio
import logging
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.loading = asyncio.create_task(asyncio.to_thread(load))
        yield

    app = FastAPI(lifespan=lifespan)
    slots = asyncio.Semaphore(4)

    @app.post("/chat")
    async def post_chat(body: Body):
        model, tokenizer = await app.state.loading
        async with slots:
            try:
                reply, history = await asyncio.to_thread(
                    chat, model=model, tokenizer=tokenizer, text=body.text
                )
            except Exception as error:
                logging.getLogger("uvicorn.error").error("no answer", exc_info=error)
                raise HTTPException(status_code=500, detail="Something went wrong.") from error
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
