# caught by: test_start_up_loads_the_model_once | says: the first request is not answered
import threading
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        def fetch():
            app.state.parts = load()

        threading.Thread(target=fetch, daemon=True).start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    def ask(body: Body):
        return {"result": chat(*app.state.parts, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
