import contextlib
import contextvars
import logging
import re
import sched
import threading
import time
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


_request = contextvars.ContextVar("request", default={"logid": "default"})


class _Line(logging.Formatter):
    def __init__(self, figures):
        super().__init__(FORMAT)
        self.figures = figures

    def formatMessage(self, record):
        cpu, memory, gpu = self.figures
        values = {"cpu": cpu, "memory": memory, "gpu": gpu, "logid": _request.get()["logid"]}
        return FORMAT % {**record.__dict__, **values}

    def format(self, record):
        parts = re.split("([\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029])", super().format(record))
        return "".join(part if index % 2 == 0 else repr(part)[1:-1] for index, part in enumerate(parts))


class _File(logging.Handler):
    def __init__(self, path, level, formatter):
        super().__init__(level)
        self.file = open(path, "ab", buffering=0)
        self.setFormatter(formatter)

    def emit(self, record):
        try:
            self.file.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)

    def end(self):
        self.file.close()


class _Service:
    """All that one call of setup_logging has started."""

    def __init__(self, folder, load):
        self.folder, self.load = folder, load
        self.figures = [0.0, 0.0, 0]
        formatter = _Line(self.figures)
        self.handlers = [
            _File(folder / "web_service.log", logging.INFO, formatter),
            _File(folder / "web_service.log.wf", logging.WARNING, formatter),
        ]
        self.running = True
        self.schedule = sched.scheduler(time.monotonic, time.sleep)
        self.schedule.enter(0, 1, self.ask)
        threading.Thread(target=self.schedule.run, daemon=True).start()

    def ask(self):
        if self.running:
            self.schedule.enter(1.5, 1, self.ask)
            with contextlib.suppress(Exception):
                self.figures[:] = self.load()

    def end(self):
        self.running = False
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
            handler.end()


_services = []


def setup_logging(folder, *, load=system_load):
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    if _services and _services[-1].folder == path:
        return
    new = _Service(path, load)
    while _services:
        _services.pop().end()
    _services.append(new)
    for handler in new.handlers:
        logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)


def _logid(scope):
    for name, value in scope["headers"]:
        if name == b"x-log-id":
            with contextlib.suppress(UnicodeDecodeError):
                text = value.decode("ascii")
                if 0 < len(text) <= 64 and text.replace("_", "a").replace("-", "a").isalnum():
                    return text
    return f"{time.time_ns()}-{uuid.uuid4().hex[:20]}"


class RequestLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await self._around(scope, receive, self._with_header(send))
        elif scope["type"] == "websocket":
            await self._around(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _around(self, scope, receive, send):
        token = _request.set({"logid": _logid(scope)})
        try:
            await self.app(scope, receive, send)
        finally:
            _request.reset(token)

    def _with_header(self, send):
        async def wrapped(message):
            if message["type"] == "http.response.start":
                id = _request.get()["logid"]
                message = message | {"headers": [*message.get("headers", ()), (b"x-log-id", id.encode())]}
            await send(message)

        return wrapped
