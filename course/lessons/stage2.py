"""Stage 2, put together: the learner's model handler, stream, limit and WebSocket, and a chat page."""

import asyncio
import logging
import os

from fastapi import HTTPException, Request
from pydantic import BaseModel, Field
from starlette.types import ASGIApp

from course.answers import importable, load_all
from course.lessons.prompts import encoded_by, encoder
from course.lessons.socket_limit import SocketLimit
from course.lessons.stage import ByPath, add_health, add_steps, fastapi_app, load_model, with_page

logger = logging.getLogger(__name__)


class ChatRequest(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    max_new_tokens: int = Field(128, ge=1, le=1024, strict=True)
    temperature: float = Field(0.0, ge=0, le=2, strict=True, allow_inf_nan=False)


def build(*, solution: bool | None = None, model: str | None = None) -> ASGIApp:
    """One app made of exercises 2.1 to 2.4, with the chat page at `/`.

        POST /chat_stream   2.3, which is 2.2 behind a limit
        WS   /ws            2.4; a prompt counts as a request, and one too many gets an error frame
        POST /chat          {"result": ...}: 2.1's answer in one piece, for comparison; without a limit
        GET  /health        {"status": "ok"}
        GET  /model         the state of the model, and PUT /pace: see `add_steps`
        GET  /prompts       {"safe": ...}: whether 1.5 has passed and so makes the ids of the prompts

    It needs no arguments, so that `uvicorn --factory course.lessons.stage2:build` and the workers
    of exercise 2.5 can call it. COURSE_SOLUTION=1 then stands for `solution=True`, COURSE_LIMIT sets the
    limit ("50/minute" by default), and COURSE_STORAGE says where requests are counted ("memory://").

    Args:
        solution: use the reference answers instead of the learner's.
        model: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.

    Raises:
        NotReady: an exercise is missing, unsolved, or cannot be loaded.
        ModelUnavailable: there is no such model.
    """
    if solution is None:
        solution = os.environ.get("COURSE_SOLUTION") == "1"
    importable(solution)
    model_handler, create_limited_app, create_socket_app = load_all(
        {"2.1": "ModelHandler", "2.3": "create_app", "2.4": "create_app"}, solution=solution
    )
    model, tokenizer = load_model(model)
    encode_chat = encoder(solution)
    handler = model_handler(model, encoded_by(encode_chat, tokenizer))
    limited_app = create_limited_app(
        handler,
        limit=os.environ.get("COURSE_LIMIT", "50/minute"),
        storage_uri=os.environ.get("COURSE_STORAGE", "memory://"),
    )
    app = fastapi_app("2.3", limited_app)
    socket_app = fastapi_app("2.4", create_socket_app(handler))
    socket_app.add_middleware(SocketLimit, limited=app)
    add_health(app)
    add_steps(app, model)

    @app.post("/chat")
    async def chat(body: ChatRequest, request: Request):
        answer = asyncio.create_task(_whole(handler, body))
        # the body has been read, so the only message still to come is that the client has left; without
        # this, the model would go on for no one: unlike a stream, a plain response is not cancelled
        left = asyncio.create_task(request.receive())
        try:
            await asyncio.wait([answer, left], return_when=asyncio.FIRST_COMPLETED)
            return {"result": answer.result() if answer.done() else ""}
        except Exception:
            logger.exception("no answer")
            raise HTTPException(500, "The model failed to answer.") from None
        finally:
            answer.cancel()
            left.cancel()

    return with_page("stage2.html", ByPath({"/ws": socket_app}, app), safe_prompts=encode_chat is not None)


async def _whole(handler, body):
    pieces = handler.generate(
        body.prompt,
        stream=False,
        max_new_tokens=body.max_new_tokens,
        temperature=body.temperature,
    )
    return "".join([piece async for piece in pieces])
