# caught by: test_after_an_error_the_next_request_is_answered | says: after an error in chat the next request is not answered
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        app.state.works = True
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        if not app.state.works:
            raise HTTPException(500, "The model is out of order.")
        try:
            reply, _ = chat(app.state.model, app.state.tokenizer, body.text)
        except Exception:
            app.state.works = False
            raise HTTPException(500, "The model failed.") from None
        return {"result": reply}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
