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

    `text` has 1 to 4,000 Unicode code points and reaches `chat` unchanged. Any other body is answered
    with 422; a text of only whitespace may be, too, and so may a body with other fields besides
    `text`. (Not promised: bodies that hold a NaN, an infinity or half a surrogate pair, and bodies
    that FastAPI itself answers with 400 because they are not UTF-8 or are nested too deep.)

    `/health` answers at once, however many answers are being made or waited for. Requests that come
    at the same time each get the answer that they would get alone, and none is refused.

    When `chat` raises an Exception, the answer is a 500 with a few plain words that show nothing of
    the error, the server's log names the error, and the next request is answered normally. (If
    `chat` raises an HTTPException, FastAPI may answer it itself. No promise for StopIteration, which
    no coroutine can raise.)

    Args:
        load: `load()` returns (model, tokenizer). `create_app` does not call it: the app's
            start-up does, once, before the first request is answered.
        chat: `chat(model, tokenizer, text)` returns (reply, history), as in exercise 1.2.
            It may be called from any thread.

    Returns:
        The FastAPI app. It shares nothing with other apps made by this function.

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
