"""Exercise 3.4: a log in which each line says whose request it was."""

import contextvars
import logging
import os
import re
import threading
import uuid
from pathlib import Path

import psutil

# given
FORMAT = (
    "[%(asctime)s] [pid:%(process)d] [level:%(levelname)s] [logid:%(logid)s]"
    " [CPU: %(cpu)s] [Memory: %(memory)s] [GPU: %(gpu)s] %(message)s"
)


# given
def system_load():
    """Measure how busy the whole computer is: (cpu, memory, gpu), three percentages.

    Returns:
        cpu: usage since the last call; 0.0 on a thread's first call.
        memory: usage right now.
        gpu: usage of the first GPU, 0 if there is none.
    """
    gpu = 0
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(0)).gpu
    except Exception:
        pass  # no GPU, no driver for it, or no package nvidia-ml-py
    return psutil.cpu_percent(), psutil.virtual_memory().percent, gpu


def setup_logging(folder, *, load=system_load):
    """Write log records to files in `folder`, one line per record. The folder and its parents are created.

    From then on, every record of level INFO or above, from any logger that propagates, is a line in
    `web_service.log` by the time the logging call returns. Every record of level WARNING or above is also a
    line in `web_service.log.wf`. (A record whose arguments do not fit its message, such as `info("%d", "x")`,
    may be missing: `logging` cannot build its message.) Lines are formatted by FORMAT:

        [2024-02-07 16:17:06,436] [pid:80550] [level:INFO] [logid:17072938] [CPU: 31.8] [Memory: 93.2] [GPU: 0] message

    Files: UTF-8 whatever the locale, and appended to. Several processes may write to the same folder if each
    has called `setup_logging` itself: no line of up to 4,000 bytes is lost or torn.

    Every record is a single line, whatever it contains. Each character at which `str.splitlines` breaks is
    written the way `repr` writes it (`\\n`, `\\r`, `\\x0b`, `\\u2028` ...), and so is a lone surrogate, which
    UTF-8 cannot encode. Backslashes are left as they are. A traceback follows its message on the same line.

    logid: the request's (see RequestLog), or `default` outside of a request. Callers cannot overwrite this
    field or the next three with `extra=`: either the line has the true values, or the call raises a KeyError.

    CPU, Memory, GPU: what `load` last returned, as `str` shows it; 0.0, 0.0 and 0 until its first result.
    A background thread calls it soon after `setup_logging` and then again every one to two seconds. Logging
    calls never wait for it. If it raises an Exception, the last figures stay, and it is still called again.
    None of this keeps the process from exiting.

    A second call with another folder moves the log there: nothing more is written to the old one. From then
    on, only the new `load` is called, for the first time within two seconds; until its first result, lines may
    show earlier figures or zeros. (An old `load` that has not returned by then is not graded: it may delay the
    new one, or its figures may arrive late.) A second call with the same directory, however it is spelled,
    changes nothing, and its `load` is not called. Calling again never duplicates lines. (What happens if this
    module runs again in the same process, as a notebook cell may, is not graded.) Other handlers of the root
    logger stay, and logging continues after `uvicorn` has configured its own logging.

    Args:
        folder: a path, as a string or a Path. A relative path is resolved once, at the call; after `os.chdir`,
            the same string names a different folder.
        load: a function without arguments that returns three percentages (cpu, memory, gpu).

    Example:
        >>> setup_logging("work/logs")
        >>> logging.getLogger("shop").warning("no bread")  # a line in both files
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    files = next((handler for handler in root.handlers if isinstance(handler, _LogFiles)), None)
    if files is None:
        files = _LogFiles(folder, load)
        root.addHandler(files)
    elif not os.path.samestat(files.place, os.stat(folder)):
        files.move(folder, load)
    root.setLevel(min(root.level, logging.INFO))


class RequestLog:
    """ASGI middleware that gives each HTTP request and each WebSocket connection a logid.

    The logid is the request's own `X-Log-Id` header if that consists of 1 to 64 of the characters `A-Z a-z 0-9 _
    -`; otherwise it is a new one made of the same characters, different for each request, even across
    processes. An HTTP response carries it in its `X-Log-Id` header (the response to a WebSocket handshake
    may, too). What happens to an `X-Log-Id` that the app sets itself is not graded.

    Every line logged for the request has it: in `async def` and `def` endpoints, in `asyncio.to_thread`,
    in tasks that the request starts, while the response streams, and after its last piece. Concurrent
    requests do not mix. Nothing is left in the caller's context afterwards, even if the app has raised.

    Everything else passes through as it is: each message from the app, immediately and unchanged; each
    error; and whatever is neither HTTP nor WebSocket (lifespan).

    Example:
        >>> app.add_middleware(RequestLog)  # or: app = RequestLog(app)
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Run `app` with a logid set. The server awaits this for each connection, as ASGI specifies."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-log-id", b"")
        id = given.decode() if re.fullmatch(rb"[A-Za-z0-9_-]{1,64}", given) else uuid.uuid4().hex

        async def send_with_id(message):
            if message["type"] == "http.response.start":
                # a message of our own: the app may send its headers again to another client
                headers = [*message.get("headers", ()), (b"x-log-id", id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        token = _logid.set(id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            _logid.reset(token)


_logid = contextvars.ContextVar("logid", default="default")

_LEVELS = {"web_service.log": logging.INFO, "web_service.log.wf": logging.WARNING}

_ESCAPES = {ord(c): repr(c)[1:-1] for c in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"}


class _LogFiles(logging.Handler):
    """Writes records to the two files of one folder at a time."""

    def __init__(self, folder, load):
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(FORMAT))
        self._open(folder, load)

    def _open(self, folder, load):
        # unbuffered: a line is one write at the file's end, so other processes cannot tear it
        self._files = [(open(folder / name, "ab", buffering=0), _LEVELS[name]) for name in _LEVELS]
        self.place = os.stat(folder)
        self._load = _Load(load)

    def move(self, folder, load):
        with self.lock:
            old_files, old_load = self._files, self._load
            self._open(folder, load)
        old_load.stop.set()
        for file, _ in old_files:
            file.close()

    # no close(): uvicorn closes all handlers when it configures its own, and this one goes on

    def emit(self, record):
        try:
            line = self.format(record).translate(_ESCAPES) + "\n"
            line = line.encode("utf-8", "backslashreplace")
            for file, level in self._files:
                if record.levelno >= level:
                    file.write(line)
        except Exception:
            self.handleError(record)

    def format(self, record):
        record.logid = _logid.get()
        record.cpu, record.memory, record.gpu = self._load.figures
        return super().format(record)


class _Load:
    """What `load` last returned; a thread calls it once a second until `stop` is set."""

    def __init__(self, load):
        self.figures = (0.0, 0.0, 0)
        self.stop = threading.Event()
        threading.Thread(target=self._ask, args=(load,), daemon=True).start()

    def _ask(self, load):
        while not self.stop.is_set():
            try:
                cpu, memory, gpu = load()
                self.figures = cpu, memory, gpu
            except Exception:
                pass  # the last figures stay: a log without them is better than none
            self.stop.wait(1.0)
