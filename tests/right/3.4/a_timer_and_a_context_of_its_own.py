import asyncio
import contextvars
import logging
import os
import re
import threading
import uuid
from pathlib import Path

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


logid: contextvars.ContextVar[str] = contextvars.ContextVar("logid", default="default")
NAME = "request_log"
TABLE = str.maketrans({c: c.encode("unicode_escape").decode() for c in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"})


class Files(logging.StreamHandler):
    """Two streams in one handler, that can be moved; found by its name, whoever made it."""

    def __init__(self):
        super().__init__(stream=open(os.devnull, "w"))
        self.set_name(NAME)
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self.addFilter(self.fields)
        self.figures = (0.0, 0.0, 0)
        self.timer = None
        self.warnings = None

    def fields(self, record):
        record.logid = logid.get()
        record.cpu, record.memory, record.gpu = self.figures
        return True

    def format(self, record):
        return super().format(record).translate(TABLE)

    def emit(self, record):
        super().emit(record)
        if record.levelno >= logging.WARNING:
            with self.lock:
                first, self.stream = self.stream, self.warnings
                try:
                    super().emit(record)
                finally:
                    self.stream = first

    def move(self, folder, load):
        options = {"mode": "a", "encoding": "utf-8", "errors": "backslashreplace"}
        log, wf = (open(folder / name, **options) for name in ("web_service.log", "web_service.log.wf"))
        with self.lock:
            self.folder, self.load = folder, load
            self.setStream(log)
            self.warnings = wf
        if self.timer:
            self.timer.cancel()
        self.measure(load, 0)

    def measure(self, load, seconds):
        def now():
            try:
                self.figures = load()
            except Exception:
                pass
            finally:
                if self.load is load:
                    self.measure(load, 1.0)

        self.timer = threading.Timer(seconds, now)
        self.timer.daemon = True
        self.timer.start()


def setup_logging(folder, *, load=system_load):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if handler.get_name() == NAME]
    files = ours[0] if ours else Files()
    if ours and files.folder == folder:
        return
    files.move(folder, load)
    root.addHandler(files)
    root.setLevel(logging.INFO)


class RequestLog:
    """Runs the app in a task and a context of its own, so that nothing needs to be put back."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        own = headers.get(b"x-log-id", b"").decode("ascii", "replace")
        id = own if re.fullmatch(r"[A-Za-z0-9_\-]{1,64}", own) else uuid.uuid4().hex

        async def send_with_id(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"x-log-id", id.encode())]}
            await send(message)

        context = contextvars.copy_context()
        context.run(logid.set, id)
        await asyncio.create_task(self.app(scope, receive, send_with_id), context=context)
