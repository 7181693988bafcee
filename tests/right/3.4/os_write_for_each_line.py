import contextvars
import itertools
import logging
import os
import string
import threading
import time
import uuid

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


ID = contextvars.ContextVar("id", default="default")
ALLOWED = set(string.ascii_letters + string.digits + "_-")
PROCESS = uuid.uuid4().hex[:16]
NUMBERS = itertools.count(1)
CHANGES = [(each, repr(each)[1:-1]) for each in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"]


class Appender(logging.Handler):
    """Opens its files for each line, so that nobody else's closing, moving or deleting matters."""

    def __init__(self):
        super().__init__(level=logging.INFO)
        self.folder = None
        self.key = None
        self.last = 0.0, 0.0, 0
        self.generation = 0
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record):
        try:
            record.logid = ID.get()
            record.cpu, record.memory, record.gpu = self.last
            text = self.format(record)
            for each, written in CHANGES:
                text = text.replace(each, written)
            data = text.encode("utf-8", errors="backslashreplace") + b"\n"
            names = ["web_service.log"]
            if record.levelno >= logging.WARNING:
                names.append("web_service.log.wf")
            for name in names:
                fd = os.open(os.path.join(self.folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)
        except Exception:
            self.handleError(record)

    def ask(self, load, generation):
        while generation == self.generation:
            try:
                self.last = load()
            except Exception:
                logging.getLogger("load").exception("no figures")
            time.sleep(1.2)


APPENDER = Appender()


def setup_logging(folder, *, load=system_load):
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    found = os.stat(folder)
    key = found.st_dev, found.st_ino
    if key == APPENDER.key:
        return
    APPENDER.key = key
    APPENDER.folder = folder
    APPENDER.generation += 1
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if APPENDER not in root.handlers:
        root.addHandler(APPENDER)
    threading.Thread(target=APPENDER.ask, args=(load, APPENDER.generation), daemon=True).start()


class RequestLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        own = b"".join(value for name, value in scope["headers"] if name == b"x-log-id").decode("latin-1")
        if not 1 <= len(own) <= 64 or not set(own) <= ALLOWED:
            own = f"{PROCESS}-{next(NUMBERS)}"

        def with_id(message):
            if message["type"] != "http.response.start":
                return send(message)
            return send({**message, "headers": [(b"X-Log-Id", own.encode()), *message.get("headers", [])]})

        token = ID.set(own)
        try:
            await self.app(scope, receive, with_id)
        finally:
            ID.reset(token)
