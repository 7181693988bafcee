"""Stage 3, put together: the endpoint that OpenAI's client talks to, its log, and a chat page."""

import logging
import os
import re
import time

from pydantic import BaseModel, Field
from starlette.types import ASGIApp

from course.answers import importable, load_all
from course.lessons.stage import ByPath, add_health, add_steps, fastapi_app, load_model, openai_page, start_log

logger = logging.getLogger(__name__)

MOST_LINES = 100
MOST_BYTES = 1_000_000
"""How much of the log, from its end, is searched for the lines of a request."""


def build(*, solution: bool | None = None, model: str | None = None) -> ASGIApp:
    """One app made of exercises 3.1 to 3.7, with the chat page at `/`.

        POST /v1/chat/completions   3.7, on top of 3.6 and 3.5
        GET  /v1/models             3.7
        POST /log_lines             {"logid": "..."} -> {"lines": [...]}, the log lines of one request:
                                    a service of four actions, built with 3.1, 3.2 and 3.3
        GET  /health, GET /model, PUT /pace   as in stage 2

    The log (3.4) is in `work/logs/`. Each conversation has a line when it arrives and one when it has been
    answered, with the logid that the client gets as X-Log-Id.

    It needs no arguments, so that `uvicorn --factory course.lessons.stage3:build --workers 2` can call
    it; COURSE_SOLUTION=1 then stands for `solution=True`.

    Args:
        solution: use the reference answers instead of the learner's.
        model: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.

    Raises:
        NotReady: an exercise is missing, unsolved, or cannot be loaded; or the log cannot be written.
        ModelUnavailable: there is no such model.
    """
    if solution is None:
        solution = os.environ.get("COURSE_SOLUTION") == "1"
    importable(solution)
    # other exercises import 3.2 and 3.5; loading them here reports an unwritten one before the server starts
    (
        (config_class, handler_class),
        _,
        (factory, create_services),
        (setup_logging, request_log),
        _,
        chat_model,
        (create_app, openai_error),
    ) = load_all(
        {
            "3.1": ("ConfigHandler", "RequestHandler"),
            "3.2": "respond",
            "3.3": ("HandlerFactory", "create_app"),
            "3.4": ("setup_logging", "RequestLog"),
            "3.5": "Sequence",
            "3.6": "ChatModel",
            "3.7": ("create_app", "openai_error"),
        },
        solution=solution,
    )
    model, tokenizer = load_model(model)
    logs = start_log(setup_logging)
    app = fastapi_app("3.7", create_app(lambda: LoggedChat(chat_model(model, tokenizer))))
    add_health(app)
    add_steps(app, model)
    register_log_service(config_class, handler_class, factory, logs / "web_service.log")
    services = fastapi_app("3.3", create_services())
    apps = ByPath({"/log_lines": services}, app)
    return request_log(openai_page("stage3.html", app, apps, openai_error))


class LoggedChat:
    """`chat_model`, with a line in the log for each conversation that arrives and for each answer."""

    def __init__(self, chat_model):
        self.chat_model = chat_model

    def chat(self, messages, **options):
        # a server for other people should not write down what they say
        logger.info("asked: %.200s", messages[-1]["content"])
        return LoggedPieces(self.chat_model.chat(messages, **options))


class LoggedPieces:
    """The pieces of one answer, unchanged, with `__anext__` and `aclose` as the contract of 3.6 requires."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.began, self.first_after, self.last, self.over = time.perf_counter(), None, None, False

    async def __anext__(self):
        try:
            self.last = await anext(self.pieces)
        except Exception:
            self.over = True  # 3.7 reports why
            raise
        self.first_after = self.first_after or self.seconds()
        if self.last.finish_reason:
            self.over = True
            self.log(self.last.finish_reason)
        return self.last

    def __aiter__(self):
        return self

    async def aclose(self):
        if not self.over:
            self.over = True
            self.log("the client left")
        await self.pieces.aclose()

    def seconds(self):
        return time.perf_counter() - self.began

    def log(self, end):
        if self.last is None:
            logger.info("no text after %.3f s: %s", self.seconds(), end)
            return
        tokens = self.last.prompt_tokens, self.last.completion_tokens
        times = self.first_after, self.seconds()
        logger.info("answered: %d + %d tokens, first text after %.3f s, all after %.3f s: %s", *tokens, *times, end)


class LogRequest(BaseModel):
    logid: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")


class LogLines(BaseModel):
    lines: list[str]


def register_log_service(config_class, handler_class, factory, file):
    """Register POST /log_lines, which returns the last MOST_LINES lines that `file` has for one request."""

    class LogFile(config_class):
        def initialize(self):
            self.file = file

    class LinesOfARequest(handler_class):
        def pre_process(self, request_body):
            return request_body.logid

        # a `def`, because reading a file would block the event loop
        def run(self, logid):
            with open(self.config.file, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - MOST_BYTES))
                end = log.read().decode("utf-8", "replace")
            # only this field counts: a message may say "[logid:...]", too
            its = re.compile(rf"\[[^]]*\] \[pid:\d+\] \[level:\w+\] \[logid:{logid}\] ")
            return [line for line in end.splitlines() if its.match(line)]

        def post_process(self, inference_result):
            return LogLines(lines=inference_result[-MOST_LINES:])

    factory.register_handler(
        "/log_lines", LogFile, LinesOfARequest, request_context=LogRequest, response_context=LogLines
    )
