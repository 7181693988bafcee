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
    """Create an app that answers each text on its own, without any history.

        POST /chat    {"text": "你好"}  ->  200  {"result": "..."}
        GET  /health                    ->  200  {"status": "ok"}

    `text` has 1 to 4,000 Unicode code points and reaches `chat` unchanged. Any other body gets a 422.
    A text that is only whitespace may get a 422 too, and so may a body with other fields besides
    `text`. (Unspecified: bodies that contain NaN, an infinity or half a surrogate pair, and bodies
    that FastAPI itself answers with 400 because they are not UTF-8 or are nested too deeply.)

    `/health` answers immediately, however many answers are in progress or waiting. Requests that
    arrive at the same time each get the answer they would get alone, and none is refused.

    If `chat` raises an Exception, the response is a 500 with a short, plain message that reveals
    nothing about the error. The server's log names the error, and the next request is answered
    normally. (If `chat` raises an HTTPException, FastAPI may handle it itself. Unspecified:
    StopIteration, which a coroutine cannot raise.)

    Args:
        load: `load()` returns (model, tokenizer). `create_app` does not call it. The app does,
            once, at startup, before it answers the first request.
        chat: `chat(model, tokenizer, text)` returns (reply, history), as in exercise 1.2.
            It may be called from any thread.

    Returns:
        The FastAPI app. It shares nothing with other apps created by this function.

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
        # without the input: it may be very long, or contain NaN or half a character, which JSON
        # cannot represent, so that FastAPI's own 422 would become a 500
        problems = [{key: each[key] for key in ("loc", "msg", "type")} for each in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    # the model gets its own thread: the event loop stays free for /health, and waiting requests
    # queue for that thread instead of filling up a shared pool
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
