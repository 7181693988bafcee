# caught by: test_other_bodies_are_422 | says: it is the sender's mistake
from contextlib import asynccontextmanager

from fastapi import Body, FastAPI, HTTPException


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: dict = Body()):
        text = str(body["text"])
        if not 1 <= len(text) <= 4000:
            raise HTTPException(422, "text must have 1 to 4000 characters")
        return {"result": chat(app.state.model, app.state.tokenizer, text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
