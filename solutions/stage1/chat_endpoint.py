"""Exercise 1.3: the model behind an HTTP endpoint."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

logger = logging.getLogger(__name__)


def create_app(load, chat):
    """Make the app that answers texts, each without a history.

        POST /chat    {"text": "你好"}  ->  200  {"result": "..."}
        GET  /health                    ->  200  {"status": "ok"}

    `text` has 1 to 4,000 Unicode code points, else the answer is 422, as for any other body (one that
    holds a NaN or half a surrogate pair is not promised); it reaches `chat` unchanged.
    `/health` answers at once, however many answers are being made or waited for. Requests at once
    each get the answer that they would get alone, and none is refused. When `chat` raises, the
    answer is a 500 with a few plain words that show nothing of the error, the server's log names the
    error, and the next request is answered normally.

    Args:
        load: `load()` returns (model, tokenizer). `create_app` does not call it: the app's
            start-up does, once, before the first request is answered.
        chat: `chat(model, tokenizer, text)` returns (reply, history), as in exercise 1.2.
            It may be called from any thread.

    Returns:
        The FastAPI app.

    Example:
        >>> app = create_app(lambda: load_chat_model("course/qwen/tiny"), chat)
        >>> uvicorn.run(app)
    """

    @asynccontextmanager
    async def lifespan(app):
        app.state.model, app.state.tokenizer = load()
        yield

    class ChatRequest(BaseModel):
        text: str = Field(min_length=1, max_length=4000)

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    async def say_what_is_allowed(request, error):
        # without the input: it may be very long, or be a NaN or half a character, which no JSON
        # can hold, so that FastAPI's own 422 would end as a 500
        problems = [{key: each[key] for key in ("loc", "msg", "type")} for each in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    # one thread of its own for the model: the event loop stays free for /health, and those who
    # wait stand in its queue instead of filling up a shared thread pool
    model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def answer(text):
        try:
            reply, _history = chat(app.state.model, app.state.tokenizer, text)
        except Exception:
            logger.exception("chat failed")
            raise HTTPException(500, "The model failed to answer.") from None
        return reply

    @app.post("/chat")
    async def post_chat(request: ChatRequest):
        loop = asyncio.get_running_loop()
        return {"result": await loop.run_in_executor(model_thread, answer, request.text)}

    @app.get("/health")
    async def get_health():
        return {"status": "ok"}

    return app
