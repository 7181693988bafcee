# a right answer: FastAPI's own thread pool makes the answers; /health needs no thread; the 500 is Starlette's own
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class ChatRequest(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


class ChatResponse(BaseModel):
    result: str


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app: FastAPI):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat", response_model=ChatResponse)
    def post_chat(request: ChatRequest):
        reply, _ = chat(app.state.model, app.state.tokenizer, request.text)
        return ChatResponse(result=reply)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
