"""Stage 1, put together: the learner's model, chat and endpoint, and a chat page."""

from starlette.types import ASGIApp

from course.answers import importable, load_all
from course.lessons.prompts import encoded_by, encoder
from course.lessons.stage import fastapi_app, model_folder, with_page


def build(*, solution: bool = False, model: str | None = None) -> ASGIApp:
    """The app from exercise 1.3, on top of 1.1 and 1.2, with the chat page at `/`.

    Once 1.5 has passed, it makes the ids of the prompts, and GET /prompts returns {"safe": true}.

    Args:
        solution: use the reference answers instead of the learner's.
        model: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.

    Raises:
        NotReady: an exercise is missing, unsolved, or cannot be loaded.
        ModelUnavailable: there is no such model.
    """
    importable(solution)
    load_chat_model, chat, create_app = load_all(
        {"1.1": "load_chat_model", "1.2": "chat", "1.3": "create_app"}, solution=solution
    )
    path = model_folder(model)
    encode_chat = encoder(solution)

    def load():
        loaded = load_chat_model(path)
        return (loaded[0], encoded_by(encode_chat, loaded[1])) if encode_chat else loaded

    app = fastapi_app("1.3", create_app(load, chat))
    return with_page("stage1.html", app, safe_prompts=encode_chat is not None)
