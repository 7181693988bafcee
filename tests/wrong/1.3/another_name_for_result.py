# caught by: test_post_chat_answers | says: not with this JSON
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class ChatRequest(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


class ChatResponse(BaseModel):
    response: str
    model: str = "qwen"


def create_app(load, chat):
    loaded = {}

    @asynccontextmanager
    async def lifespan(app):
        loaded["model"], loaded["tokenizer"] = load()
        yield
        loaded.clear()

    app = FastAPI(title="Qwen", lifespan=lifespan)

    @app.post("/chat", response_model=ChatResponse)
    def ask(request: ChatRequest) -> ChatResponse:
        reply, _ = chat(text=request.text, **loaded)
        return ChatResponse(response=reply)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
