# caught by: test_64_requests_at_once_get_their_answers, test_after_an_error_the_next_request_is_answered | says: requests at once mix
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


class ChatService:
    def __init__(self, model, tokenizer, chat):
        self.model, self.tokenizer, self.chat = model, tokenizer, chat

    def pre_process(self, text):
        self.text = text

    def run(self):
        self.reply, _ = self.chat(self.model, self.tokenizer, self.text)

    def post_process(self):
        return {"result": self.reply}


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.service = ChatService(*load(), chat)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        service = app.state.service
        service.pre_process(body.text)
        service.run()
        return service.post_process()

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
