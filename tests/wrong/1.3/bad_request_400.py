# caught by: test_other_bodies_are_422, test_a_text_has_1_to_4000_code_points | says: is 422
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return JSONResponse({"detail": "bad request"}, status_code=400)

    @app.post("/chat")
    def ask(body: Body):
        return {"result": chat(app.state.model, app.state.tokenizer, body.text)[0]}

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app
