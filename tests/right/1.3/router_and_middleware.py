# a right answer: an APIRouter, a dependency for the model, a middleware that turns errors into a 500
import asyncio
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse

router = APIRouter()
Text = Annotated[str, Body(embed=True, min_length=1, max_length=4000)]


async def answerer(request: Request):
    return request.app.state.answer


@router.post("/chat")
async def post_chat(text: Text, answer=Depends(answerer)):
    return {"result": await answer(text)}


@router.get("/health")
async def get_health():
    return {"status": "ok"}


def create_app(load, chat):
    @asynccontextmanager
    async def lifespan(app):
        with ThreadPoolExecutor(max_workers=3) as pool:
            loop = asyncio.get_running_loop()
            model, tokenizer = await loop.run_in_executor(pool, load)

            async def answer(text):
                reply, _ = await loop.run_in_executor(pool, partial(chat, model, tokenizer, text))
                return reply

            app.state.answer = answer
            yield

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def errors(request, call_next):
        try:
            return await call_next(request)
        except Exception:
            traceback.print_exc()
            return PlainTextResponse("Internal error", status_code=500)

    app.include_router(router)
    return app
