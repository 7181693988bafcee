"""Stage 1 put together: the learner's model, chat and endpoint, and a chat page."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.types import ASGIApp

from course.answers import NotReady, importable, load_all
from course.lessons.body_limit import BodyLimit
from course.lessons.parts import model_folder

PAGE = Path(__file__).with_name("chat.html")


def build(*, solution: bool = False, model: str | None = None) -> ASGIApp:
    """The app of exercise 1.3 with 1.1 and 1.2 in it, and the chat page at `/`.

    Args:
        solution: use the reference answers instead of the learner's.
        model: a folder or a hub name; None means COURSE_MODEL, or else the tiny model.

    Raises:
        NotReady: an exercise is missing, unsolved, or cannot be loaded.
        ModelUnavailable: there is no such model.
    """
    importable(solution)
    load_chat_model, chat, create_app = load_all(
        {"1.1": "load_chat_model", "1.2": "chat", "1.3": "create_app"}, solution=solution
    )
    path = model_folder(model)
    app = create_app(lambda: load_chat_model(path), chat)
    if not isinstance(app, FastAPI):
        raise NotReady(f"1.3 is not done yet: `create_app` returned {app!r}, not a FastAPI app")

    @app.get("/", include_in_schema=False)
    async def page():
        return FileResponse(PAGE)

    return BodyLimit(app)
