"""What the stages' servers share: the model, a page, a health check, and a limit for bodies."""

from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import FileResponse
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


def with_page(name: str, app: ASGIApp) -> ASGIApp:
    """The app with a chat page at `/`, the file `name` of `pages/`; bodies have a limit."""

    async def page(_):
        return FileResponse(PAGES / name)

    pages = Starlette(routes=[Route("/", page), Mount("/", StaticFiles(directory=PAGES))])
    return BodyLimit(ByPath(dict.fromkeys(["/", "/common.css", "/common.js"], pages), app))


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
