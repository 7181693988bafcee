"""What the servers of all stages share: the model and its pace, a page, a health check, a limit for bodies."""

import logging
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from transformers.utils.logging import disable_progress_bar

from course.answers import NotReady, load
from course.lessons.body_limit import BodyLimit
from course.manifest import work_folder
from course.qwen.models import model_path
from course.words import words

PAGES = Path(__file__).with_name("pages")


def load_model(name: str | None):
    """(model, tokenizer), loaded by the reference answer to 1.1.

    Args:
        name: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.

    Raises:
        ModelUnavailable: there is no such model.
    """
    return load("1.1", "load_chat_model", solution=True)(model_folder(name))


def model_folder(name: str | None) -> str:
    """`model_path(name)`. A download shows its progress; reading the weights afterwards does not."""
    path = model_path(name)
    disable_progress_bar()
    return path


def fastapi_app(id: str, made) -> FastAPI:
    """`made`, which the exercise's `create_app` returned.

    Raises:
        NotReady: it is not a FastAPI app.
    """
    if not isinstance(made, FastAPI):
        said = words("{id} is not done yet: `create_app` returned {made}, not a FastAPI app", id=id, made=repr(made))
        raise NotReady(said)
    return made


def add_health(app: FastAPI) -> None:
    """`GET /health`: {"status": "ok"}."""

    @app.get("/health")
    async def health():
        return {"status": "ok"}


def start_log(setup_logging) -> Path:
    """Start 3.4's log in `work/logs/`, and show warnings and errors in the terminal, too. Returns the folder.

    Raises:
        NotReady: the log cannot be written there.
    """
    folder = work_folder() / "logs"
    try:
        setup_logging(folder)
    except OSError as error:
        said = words("The log cannot be written: {error}. Set COURSE_WORK to another folder.", error=error)
        raise NotReady(said) from None
    logging.getLogger().addHandler(logging.lastResort)
    return folder


def openai_page(name: str, app: FastAPI, apps: ASGIApp, openai_error) -> ASGIApp:
    """`apps` with a page, as in `with_page`, and with refusals in the format of OpenAI's errors: the 404 and 405 of
    `app`, unless it has its own handlers for them, and the 413 for bodies that are too large."""

    async def not_there(request, error):
        response = openai_error(error.status_code, error.detail, type="invalid_request_error")
        response.headers.update(error.headers or {})
        return response

    for status in (404, 405):
        app.exception_handlers.setdefault(status, not_there)
    return with_page(name, apps, refusal=lambda words: openai_error(413, words, type="invalid_request_error"))


class Pace(BaseModel):
    pause_ms: int = Field(ge=0, le=200, strict=True)


def add_steps(app: FastAPI, model) -> None:
    """Add two paths: one to look at the model, one to slow it down.

    GET  /model   {"steps": forward passes so far, "pid": ..., "memory_mb": ..., "parameters": ...,
                   "pause_ms": 0}: this shows that a stopped answer costs no more steps
    PUT  /pace    {"pause_ms": 40}: how long the model pauses after each step, for everyone; the page
                  uses this, since the tiny model is too fast to watch
    """
    steps, pause_s = 0, 0.0

    def after_a_step(*_):
        nonlocal steps
        steps += 1
        if pause_s:
            time.sleep(pause_s)

    model.model.register_forward_hook(after_a_step)

    @app.get("/model")
    async def model_state():
        # the resident set includes pages that workers share; what a copy costs is its unique set
        memory = psutil.Process().memory_full_info()
        return {
            "steps": steps,
            "pid": os.getpid(),
            "memory_mb": memory.uss / 1e6,
            "parameters": model.num_parameters(),
            "pause_ms": round(pause_s * 1000),
        }

    @app.put("/pace")
    async def model_pace(pace: Pace):
        nonlocal pause_s
        pause_s = pace.pause_ms / 1000


def with_page(name: str, app: ASGIApp, safe_prompts: bool = False, **limit) -> ASGIApp:
    """The app with a chat page at `/`, which is the file `name` in `pages/`, and a limit for bodies.

    Args:
        safe_prompts: what `GET /prompts` returns, {"safe": ...}: whether 1.5 makes the ids of the prompts.
        limit: keyword arguments for BodyLimit.
    """

    async def page(_):
        return FileResponse(PAGES / name)

    async def prompts(_):
        return JSONResponse({"safe": safe_prompts})

    routes = [Route("/", page), Route("/prompts", prompts), Mount("/", StaticFiles(directory=PAGES))]
    paths = dict.fromkeys(["/", "/prompts", "/common.css", "/common.js", "/openai.js"], Starlette(routes=routes))
    return BodyLimit(ByPath(paths, app), **limit)


class ByPath:
    """An app that passes each path in `apps` to the app given for it, and all other paths to `others`.

    It starts all of these apps and shuts them down. Each is a Starlette or FastAPI app, or a ByPath.
    """

    def __init__(self, apps: dict[str, ASGIApp], others: ASGIApp):
        self.apps, self.others = apps, others
        self.router = Router(lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _):
        async with AsyncExitStack() as started:
            state = {}
            for app in dict.fromkeys([self.others, *self.apps.values()]):
                state |= await started.enter_async_context(app.router.lifespan_context(app)) or {}
            yield state

    async def __call__(self, scope, receive, send):
        starts = scope["type"] == "lifespan"
        app = self.router if starts else self.apps.get(scope["path"], self.others)
        await app(scope, receive, send)
