import contextvars
import datetime
import fcntl
import logging
import os
import pathlib
import queue
import random
import re
import threading
import traceback

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


LOGID = contextvars.ContextVar("LOGID", default=None)
BREAK = re.compile("[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ud800-\udfff]")
RANDOM = random.SystemRandom()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class LockedFile(logging.Handler):
    """A line by hand, written while nobody else may write."""

    def __init__(self, path, level, figures):
        super().__init__(level)
        self.path, self.figures = path, figures

    def emit(self, record):
        try:
            at = datetime.datetime.fromtimestamp(record.created)
            cpu, memory, gpu = self.figures["now"]
            message = record.getMessage()
            if record.exc_info:
                message += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            line = (
                f"[{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03d}] [pid:{os.getpid()}]"
                f" [level:{record.levelname}] [logid:{LOGID.get() or 'default'}]"
                f" [CPU: {cpu}] [Memory: {memory}] [GPU: {gpu}] {message}"
            )
            line = BREAK.sub(lambda found: repr(found[0])[1:-1], line)
            with open(self.path, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(line.encode() + b"\n")
                file.flush()
        except Exception:
            self.handleError(record)


class _Now:
    folder = None
    handlers = ()
    commands = None


def _measure(load, figures, commands):
    while True:
        try:
            figures["now"] = load()
        except Exception:
            pass
        try:
            commands.get(timeout=1.9)
            return
        except queue.Empty:
            pass


def setup_logging(folder, *, load=system_load):
    folder = pathlib.Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if _Now.folder is not None and _Now.folder.is_dir() and _Now.folder.samefile(folder):
        return
    root = logging.getLogger()
    for handler in _Now.handlers:
        root.removeHandler(handler)
    if _Now.commands is not None:
        _Now.commands.put("end")
    figures = {"now": (0.0, 0.0, 0)}
    _Now.folder, _Now.commands = folder, queue.Queue()
    _Now.handlers = (
        LockedFile(folder / "web_service.log", logging.INFO, figures),
        LockedFile(folder / "web_service.log.wf", logging.WARNING, figures),
    )
    root.setLevel(logging.INFO)
    for handler in _Now.handlers:
        root.addHandler(handler)
    threading.Thread(target=_measure, args=(load, figures, _Now.commands), daemon=True).start()


class RequestLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name.lower() == b"x-log-id"]
        if given and re.fullmatch(rb"[-A-Za-z0-9_]{1,64}", given[0]):
            id = given[0].decode()
        else:
            id = "".join(RANDOM.choices(LETTERS, k=20))

        async def answer(message):
            if message["type"] == "http.response.start":
                headers = list(message.get("headers") or [])
                headers.append([b"x-log-id", id.encode()])
                message = message | {"headers": headers}
            await send(message)

        LOGID.set(id)
        try:
            await self.app(scope, receive, answer)
        finally:
            LOGID.set(None)
