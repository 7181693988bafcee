import contextvars
import logging
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


logid = contextvars.ContextVar("logid", default="default")
BREAKS = {ord(each): repr(each).strip("'") for each in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"}


class OneLine(logging.Formatter):
    def format(self, record):
        return super().format(record).translate(BREAKS)


class AddFields(logging.Filter):
    def __init__(self, setup):
        super().__init__()
        self.setup = setup

    def filter(self, record):
        record.logid = logid.get()
        record.cpu, record.memory, record.gpu = self.setup.figures
        return True


class Setup:
    def __init__(self, folder, load):
        self.folder = folder
        self.load = load
        self.figures = (0.0, 0.0, 0)
        self.over = threading.Event()
        self.handlers = []
        for name, level in (("web_service.log", "INFO"), ("web_service.log.wf", "WARNING")):
            handler = logging.FileHandler(folder / name, encoding="utf-8", errors="backslashreplace")
            handler.setLevel(level)
            handler.setFormatter(OneLine(FORMAT))
            handler.addFilter(AddFields(self))
            self.handlers.append(handler)
            logging.getLogger().addHandler(handler)
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while not self.over.is_set():
            try:
                self.figures = self.load()
            except Exception:
                pass
            self.over.wait(1.5)

    def end(self):
        self.over.set()
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


current = None


def setup_logging(folder, *, load=system_load):
    global current
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if current is not None:
        if current.folder == folder:
            return
        current.end()
    logging.getLogger().setLevel(logging.INFO)
    current = Setup(folder, load)


class RequestLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        id = None
        for name, value in scope["headers"]:
            if name == b"x-log-id":
                text = value.decode("latin-1")
                if re.fullmatch("[A-Za-z0-9_-]{1,64}", text):
                    id = text
        if id is None:
            id = str(uuid.uuid4())

        async def send_with_header(message):
            if message["type"] == "http.response.start":
                message = dict(message)
                message["headers"] = list(message.get("headers", [])) + [(b"x-log-id", id.encode("ascii"))]
            await send(message)

        token = logid.set(id)
        try:
            await self.app(scope, receive, send_with_header)
        finally:
            logid.reset(token)
