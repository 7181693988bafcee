"""What the stages' servers share: the model and its pace, a page, a health check, a limit for bodies."""

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
from course.qwen.models import model_path

PAGES = Path(__file__).with_name("pages")


def load_model(name: str | None):
    """(model, tokenizer), as the reference answer to 1.1 loads them.

    Args:
        name: a folder or a hub name; None means COURSE_MODEL, or else the tiny model.

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
    """What the exercise's `create_app` returned.

    Raises:
        NotReady: it is not a FastAPI app.
    """
    if not isinstance(made, FastAPI):
        raise NotReady(f"{id} is not done yet: `create_app` returned {made!r}, not a FastAPI app")
    return made


def add_health(app: FastAPI) -> None:
    """`GET /health`: {"status": "ok"}."""

    @app.get("/health")
    async def health():
        return {"status": "ok"}


class Pace(BaseModel):
    pause_ms: int = Field(ge=0, le=200, strict=True)


def add_steps(app: FastAPI, model) -> None:
    """What can be seen of the model, and how to slow it down.

    GET  /model   {"steps": forward passes so far, "pid": ..., "memory_mb": ..., "parameters": ...,
                   "pause_ms": 0}: so one sees that an answer that was stopped costs no more steps
    PUT  /pace    {"pause_ms": 40}: so long is the model idle after each step, for all; the page asks
                  for it, since nobody can watch the tiny model's own pace
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
        # the resident set counts pages that workers share; a copy's own cost is its unique set
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
    """The app with a chat page at `/`, the file `name` of `pages/`; bodies have a limit.

    Args:
        safe_prompts: what `GET /prompts` says, {"safe": ...}: whether 1.5 makes the prompts' ids.
        limit: as for BodyLimit.
    """

    async def page(_):
        return FileResponse(PAGES / name)

    async def prompts(_):
        return JSONResponse({"safe": safe_prompts})

    routes = [Route("/", page), Route("/prompts", prompts), Mount("/", StaticFiles(directory=PAGES))]
    paths = dict.fromkeys(["/", "/prompts", "/common.css", "/common.js"], Starlette(routes=routes))
    return BodyLimit(ByPath(paths, app), **limit)


class ByPath:
    """An app that leaves each path of `apps` to its app, and all other paths to `others`.

    All of them are started and shut down; each is a Starlette or FastAPI app, or a ByPath.
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
