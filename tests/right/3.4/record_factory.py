import logging
import logging.handlers
import os
import re
import secrets
import threading
import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders

import psutil

FORMAT = (
    "[%(asctime)s] [pid:%(process)d] [level:%(levelname)s] [logid:%(logid)s]"
    " [CPU: %(cpu)s] [Memory: %(memory)s] [GPU: %(gpu)s] %(message)s"
)


def system_load():
    gpu = 0
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0)).gpu
    except Exception:
        pass
    return psutil.cpu_percent(), psutil.virtual_memory().percent, gpu


current_id = ContextVar("current_id")
state = {"folder": None, "load": None, "thread": None, "cpu": 0.0, "memory": 0.0, "gpu": 0}
make_record = logging.getLogRecordFactory()


def factory(*args, **kwargs):
    record = make_record(*args, **kwargs)
    record.logid = current_id.get("default")
    record.cpu, record.memory, record.gpu = state["cpu"], state["memory"], state["gpu"]
    return record


def escape(text):
    return "".join(
        each if each.isprintable() or each in " \t" or not is_break(each) else repr(each)[1:-1] for each in text
    )


def is_break(each):
    return len(f"a{each}b".splitlines()) > 1 or "\ud800" <= each <= "\udfff"


class Formatter(logging.Formatter):
    def format(self, record):
        text = super().format(record)
        return text if text.isascii() and text.isprintable() else escape(text)


def measure():
    while True:
        load = state["load"]
        try:
            cpu, memory, gpu = load()
        except Exception as error:
            logging.getLogger(__name__).debug("load failed: %s", error)
        else:
            if load is state["load"]:
                state.update(cpu=cpu, memory=memory, gpu=gpu)
        time.sleep(1)


def setup_logging(folder, *, load=system_load):
    os.makedirs(folder, exist_ok=True)
    folder = os.path.realpath(folder)
    if folder == state["folder"]:
        return
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "of_request_log", False):
            root.removeHandler(handler)
            handler.close()
    logging.setLogRecordFactory(factory)
    for name, level in (("web_service.log", logging.INFO), ("web_service.log.wf", logging.WARNING)):
        path = os.path.join(folder, name)
        handler = logging.handlers.WatchedFileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
        handler.of_request_log = True
        handler.setLevel(level)
        handler.setFormatter(Formatter(FORMAT))
        root.addHandler(handler)
    if root.level == logging.NOTSET or root.level > logging.INFO:
        root.setLevel(logging.INFO)
    state.update(folder=folder, load=load)
    if state["thread"] is None:
        state["thread"] = threading.Thread(target=measure, name="load", daemon=True)
        state["thread"].start()


class RequestLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket"):
            own = Headers(scope=scope).get("x-log-id", "")
            id = own if re.fullmatch(r"[\w-]{1,64}", own, re.ASCII) else secrets.token_urlsafe(12)

            async def send_it(message):
                if message["type"] in ("http.response.start", "websocket.accept"):
                    message = {**message, "headers": list(message.get("headers", []))}
                    MutableHeaders(scope=message)["X-Log-Id"] = id
                await send(message)

            before = current_id.set(id)
            try:
                await self.app(scope, receive, send_it)
            finally:
                current_id.reset(before)
        else:
            await self.app(scope, receive, send)
