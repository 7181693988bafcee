# caught by: test_an_error_in_chat_is_a_plain_500 | says: the 500 is an HTML page
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(500)
    async def failed(request, error):
        return HTMLResponse("<h1>500</h1><p>Something went wrong.</p>", status_code=500)

    @app.post("/chat")
    def ask(body: Body):
        return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
