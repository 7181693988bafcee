"""Stage 4, put together: stage 3's endpoint on a batching engine in its own process, with admission, metrics, and a
page that plots them."""

import os
from contextlib import asynccontextmanager
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp
from transformers import AutoTokenizer

from course.answers import NotReady, importable, is_skipped, load, load_all
from course.lessons.engine_process import Engine, EngineError
from course.lessons.stage import (
    PAGES,
    ByPath,
    add_health,
    fastapi_app,
    load_model,
    model_folder,
    openai_page,
    start_log,
)
from course.lessons.stage3 import LoggedChat
from course.records import ever_passed
from course.words import words

PATH = "/v1/chat/completions"
SLOTS, SLOTS_LARGE = 64, 8
"""How many answers there is room for at once. The caches of a large model take gigabytes."""


def build(
    *, solution: bool | None = None, model: str | None = None, tuned: bool | None = None, thread: bool | None = None
) -> ASGIApp:
    """One app made of exercises 3.4, 3.7 and 4.1 to 4.3, with pages at `/` and `/dashboard`.

        POST /v1/chat/completions   3.7, on top of 4.1 in its own process, with 4.3 inside and 4.2 around it
        GET  /v1/models             3.7
        GET  /metrics               4.3's metrics and the server's own
        GET  /dashboard             a page that plots them
        GET  /health                {"status": "ok"}: the server is answering
        GET  /ready                 {"status": "ready"} if the model has answered and its engine is alive, otherwise 503
        GET  /model                 the state of the model, as in stage 2

    As in stage 3, it needs no arguments. COURSE_SOLUTION=1, COURSE_TUNED=1 and COURSE_THREAD=1 then stand for
    `solution=True`, `tuned=True` and `thread=True`. COURSE_SLOTS is how many answers share the model's steps,
    and COURSE_WAITING is how many more requests may wait.

    Args:
        solution: use the reference answers instead of the learner's.
        model: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.
        tuned: use the course's own fast slot model, even if 4.5 is solved.
        thread: run the engine in a thread of the server's process.

    Raises:
        NotReady: an exercise is missing, unsolved, or cannot be loaded; or the log cannot be written.
        ModelUnavailable: there is no such model.
    """
    solution, tuned, thread = (
        os.environ.get(name) == "1" if given is None else given
        for name, given in (("COURSE_SOLUTION", solution), ("COURSE_TUNED", tuned), ("COURSE_THREAD", thread))
    )
    importable(solution)
    folder = model_folder(model)
    large = bool(model or os.environ.get("COURSE_MODEL"))
    slots = _setting("COURSE_SLOTS", SLOTS_LARGE if large else SLOTS, 1)
    waiting = _setting("COURSE_WAITING", slots, 0)
    own = (solution or ever_passed("4.5")) and not tuned
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def start():
        load_it = partial(load_engine, solution, folder, slots, own)
        return Engine(load_it, lambda messages: encode_chat(tokenizer, messages), thread=thread)

    # a process loads its part while this one loads the rest; two threads cannot import answers at the same time
    engine = None if thread else start()
    try:
        answers = load_all(
            {
                "3.4": ("setup_logging", "RequestLog"),
                "3.5": "Sequence",
                "3.7": ("create_app", "openai_error"),
                "4.1": "run",
                "4.2": "Admission",
                "4.3": "MeasuredChat",
            },
            solution=solution,
        )
        [encode_chat] = load_all({"1.5": "encode_chat"}, solution=solution or is_skipped("1.5"))
        (setup_logging, request_log), _, (create_app, openai_error), _, admission, measured_chat = answers
        start_log(setup_logging)
        engine = engine or start()
        registry = CollectorRegistry()
        app = fastapi_app("3.7", create_app(lambda: LoggedChat(measured_chat(engine, registry))))
        engine.wait_until_loaded()
    except BaseException as error:
        if engine is not None:
            engine.close()
        if isinstance(error, EngineError):
            raise NotReady(words("The engine did not start: {error}", error=error)) from None
        raise
    add_health(app)

    def no_engine():
        response = openai_error(503, "The model is restarting. Try again later.", type="server_error")
        response.headers["Retry-After"] = "2"
        return response

    admitted = admission(OnlyAlive(app, engine, no_engine), max_running=slots, max_waiting=waiting, path=PATH)
    # it starts and ends together with the app
    admitted.router = Router(lifespan=lambda _: app.router.lifespan_context(app))
    registry.register(Figures(engine, admitted))
    operations = _operations(engine, registry)
    apps = ByPath(dict.fromkeys(["/ready", "/metrics", "/model", "/dashboard"], operations), admitted)
    return request_log(openai_page("stage4.html", app, apps, openai_error))


def _setting(name, default, least):
    """A number from an environment variable.

    Raises:
        NotReady: it is not a number, or too small.
    """
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        values = {"name": name, "text": repr(text), "least": least}
        raise NotReady(words("{name} is {text}, but must be an integer of at least {least}.", **values))
    return int(text)


def load_engine(solution: bool, folder: str, slots: int, own: bool):
    """(run, slots, tokenizer): 4.1's loop and a slot model for it. Called in the engine's process.

    Args:
        own: use 4.5's slot model instead of the course's.
    """
    importable(solution)
    run = load("4.1", "run", solution)
    model, tokenizer = load_model(folder)
    if own:
        slot_model = load("4.5", "SlotModel", solution)(model, slots=slots)
    else:
        slot_model = _tuned(model, tokenizer, slots)
    slot_model.parameters = model.num_parameters()
    return run, slot_model, tokenizer


def _tuned(model, tokenizer, slots):
    if model.device.type == "cuda":
        from course.qwen.slots_cuda import SlotModel

        return SlotModel(model, slots=slots)
    from course.qwen.slots import SlotModel

    # the beginning of all prompts that do not have their own system line
    one, two = (tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False) for text in "ab")
    return SlotModel(model, slots=slots, prefix=os.path.commonprefix([one, two]))


class OnlyAlive:
    """An app around `app` that refuses each request to PATH with `refusal()` while there is no engine."""

    def __init__(self, app, engine, refusal):
        self.app, self.engine, self.refusal = app, engine, refusal

    async def __call__(self, scope, receive, send):
        refused = scope["type"] == "http" and scope["path"] == PATH and not self.engine.alive
        await (self.refusal() if refused else self.app)(scope, receive, send)


class Figures:
    """The server's own metrics, for a prometheus registry. They are read whenever the registry is."""

    def __init__(self, engine, admission):
        self.engine, self.admission = engine, admission

    def collect(self):
        yield GaugeMetricFamily("llm_requests_running", "Requests being answered.", self.admission.running)
        yield GaugeMetricFamily("llm_requests_waiting", "Requests waiting.", self.admission.waiting)
        yield GaugeMetricFamily("llm_engine_up", "1 while the engine is alive.", int(self.engine.alive))
        yield CounterMetricFamily("llm_engine_restarts", "Engines started after the first.", self.engine.restarts)
        yield CounterMetricFamily("llm_engine_steps", "Calls to the model so far.", self.engine.steps)
        yield CounterMetricFamily("llm_engine_tokens", "Tokens generated so far.", self.engine.tokens)


def _operations(engine, registry):
    """The app for those who look after the server. It starts the engine and shuts it down."""

    @asynccontextmanager
    async def lifespan(_):
        async with engine:
            yield

    async def ready(_):
        if engine.ready:
            return JSONResponse({"status": "ready"})
        why = "the model has not answered yet" if engine.alive else "there is no engine"
        return JSONResponse({"status": "not ready", "reason": why}, 503, headers={"Retry-After": "1"})

    async def metrics(_):
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def model(_):
        return JSONResponse({"steps": engine.steps, **engine.loaded})

    async def dashboard(_):
        return FileResponse(PAGES / "dashboard.html")

    routes = [Route(f"/{each.__name__}", each) for each in (ready, metrics, model, dashboard)]
    return Starlette(routes=routes, lifespan=lifespan)
