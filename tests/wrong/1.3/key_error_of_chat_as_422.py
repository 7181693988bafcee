# caught by: test_an_error_in_chat_is_a_plain_500 | says: the status is 500, not 422
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def ask(request: Request):
        try:
            text = (await request.json())["text"]
            if not isinstance(text, str) or not 1 <= len(text) <= 4000:
                raise ValueError("text must have 1 to 4000 characters")
            reply, _ = await asyncio.to_thread(chat, app.state.model, app.state.tokenizer, text)
        except (KeyError, TypeError, ValueError):
            raise HTTPException(422, "the body has to be {'text': '...'}") from None
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
