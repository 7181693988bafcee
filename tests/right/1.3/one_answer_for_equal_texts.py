# a right answer: requests at once with the same text share one call of chat
import asyncio
import logging
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

logger = logging.getLogger(__name__)


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    under_way = {}

    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.post("/chat")
    async def post_chat(body: Body):
        text = body.text
        if text not in under_way:
            call = asyncio.to_thread(chat, app.state.model, app.state.tokenizer, text)
            under_way[text] = asyncio.create_task(call)
            under_way[text].add_done_callback(lambda _: under_way.pop(text))
        try:
            reply, _ = await asyncio.shield(under_way[text])
        except Exception:
            logger.exception("no answer")
            raise HTTPException(500, "The model did not answer.") from None
        return {"result": reply}

    return app
