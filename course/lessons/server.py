"""Run a lesson's server next to a notebook or in a terminal.

The server runs in its own process, so that neither can block or break the other. It stops when its standard input is
closed, which the system also does when this process ends for any reason.
"""

import contextlib
import errno
import html
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from course.manifest import ROOT, UnknownExercise, find
from course.words import words

LESSONS = {number: f"course.lessons.stage{number}" for number in (1, 2, 3, 4)}
LET_GO_S = 1
"""How long answers in progress may go on after a notebook stops the server, in seconds."""
GRACE_S = 8
"""The same after SIGTERM or Ctrl-C in a terminal. `docker stop` kills the process after 10 seconds."""
LOG_BYTES = 65_536
NOTICE_S = 15

_running: dict[int, "Server"] = {}


class ServeError(Exception):
    """The server did not start, or cannot start. The message says why and what to do."""

    def _render_traceback_(self):
        # a notebook then shows the message, not the path through this file
        return [f"{type(self).__name__}: {self}"]


def serve(
    stage: int | str,
    *,
    solution: bool = False,
    port: int = 0,
    host: str = "127.0.0.1",
    model: str | None = None,
    tuned: bool = False,
    thread: bool = False,
) -> "Server":
    """Start a lesson's server and return when it answers.

    An earlier server for the same lesson is stopped first, so that you can run the cell again.
    The server ends no later than this process.

    Args:
        stage: a stage, or an exercise of it: 1, "1" and "1.3" are all the server of stage 1.
        solution: serve the reference answers instead of your own.
        port: 0 means the port of the earlier server, or any free one if there was none.
        host: the address to listen on. Anything but this computer's own 127.0.0.1 lets other computers connect.
        model: a folder or a hub name; None means COURSE_MODEL, or the tiny model if that is not set.
        tuned: in stage 4, use the course's fast slot model, even if exercise 4.5 is solved.
        thread: in stage 4, run the engine in a thread of the server's process, for comparison.

    Raises:
        ServeError: an exercise is not written yet, the port is in use, the model is missing, or
            the server ended; the message has its last lines.

    Example:
        >>> with course.serve("1.3") as server:
        ...     print(httpx.post(server.url + "/chat", json={"text": "你好"}).json())
    """
    number = stage_number(stage)
    earlier = _running.get(number)
    if earlier is not None:
        earlier.stop()
    listener = None
    if earlier is not None and port == 0 and earlier.host == host:
        # a chat page that is still open in the browser then talks to the new server
        with contextlib.suppress(ServeError):
            listener = _bind(host, earlier.port)
    listener = listener or _bind(host, port)
    try:
        _running[number] = Server(
            number, listener, host=host, solution=solution, model=model, tuned=tuned, thread=thread
        )
    except KeyboardInterrupt:
        raise ServeError(words("Stopped before the server answered.")) from None
    return _running[number]


def run(
    stage: int | str,
    *,
    solution: bool = False,
    port: int = 8000,
    host: str = "127.0.0.1",
    model: str | None = None,
    tuned: bool = False,
    thread: bool = False,
) -> int:
    """Serve a lesson in a terminal until Ctrl-C or SIGTERM, with the server's log in the terminal.

    After that, the server takes no more requests, and answers in progress have GRACE_S seconds to finish.
    A second Ctrl-C ends them immediately.

    The arguments are those of `serve`.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM; 1 if the server did not start or stopped by itself.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        number = stage_number(stage)
        if host not in ("127.0.0.1", "localhost", "::1"):
            print(words("Careful: on {host}, anyone who can reach this computer can use the server.", host=host))
        listener = _bind(host, port)
        with Server(
            number,
            listener,
            host=host,
            solution=solution,
            model=model,
            tuned=tuned,
            thread=thread,
            to_terminal=True,
        ) as server:
            said = words(
                "Stage {number}, {whose}: {url}  (Ctrl-C stops it)",
                number=number,
                whose=_whose(solution),
                url=server.url,
            )
            print(said, flush=True)
            try:
                server.process.wait()
            except KeyboardInterrupt:
                server.shut_down()
                raise
    except KeyboardInterrupt:
        print("\n" + words("Stopped."))
        return 0
    except ServeError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    print(words("The server stopped by itself."), file=sys.stderr)
    return 1


def stage_number(stage: int | str) -> int:
    """The stage that 1, "1" or "1.3" stands for.

    Raises:
        ServeError: the stage has no server (the message lists those that do), or there is no such exercise.
    """
    if "." in str(stage):
        try:
            find(stage)
        except UnknownExercise as error:
            raise ServeError(str(error)) from None
    text = str(stage).partition(".")[0]
    if text.isdecimal() and int(text) in LESSONS:
        return int(text)
    known = ", ".join(map(str, LESSONS))
    said = words("There is no server for stage {stage}. Stages with a server: {known}.", stage=stage, known=known)
    raise ServeError(said)


class Server:
    """A lesson's server in its own process.

    `url` is its address, `logs()` returns what it has printed, and `stop()` ends it. As a context
    manager, it stops at the end of the block.
    """

    def __init__(self, stage, listener, *, host, solution, model, tuned=False, thread=False, to_terminal=False):
        self.stage, self.host, self.solution = stage, host, solution
        self._output = b""
        print(words("Starting the server for stage {stage} ...", stage=stage), flush=True)
        with listener:
            self.port = listener.getsockname()[1]
            self.process = _start(stage, listener, host, solution, model, tuned, thread, to_terminal)
        name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self._address = (name, self.port)
        self.url = f"http://[{name}]:{self.port}" if ":" in name else f"http://{name}:{self.port}"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server. A second call does nothing."""
        self.process.stdin.close()
        try:
            self.process.wait(LET_GO_S + 3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def shut_down(self) -> None:
        """End the server when the answers in progress have ended, or after GRACE_S seconds at the latest."""
        if os.name == "posix":
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S + 3)
        self.stop()

    def logs(self) -> str:
        """The last 64 KB that the server has printed, even after it has ended."""
        return self._output.decode("utf-8", "replace")

    def _read(self):
        if self.process.stdout is not None:
            with self.process.stdout as stdout:
                while chunk := stdout.read1():
                    self._output = (self._output + chunk)[-LOG_BYTES:]

    def _wait(self):
        """Return when the server answers anything.

        Raises:
            ServeError: the server ended first; the message has its last lines.
        """
        started, notices = time.monotonic(), 1
        connection = None
        while self.process.poll() is None:
            try:
                if connection is None:
                    connection = socket.create_connection(self._address, timeout=0.2)
                    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(1):
                    connection.close()
                    return
                connection = None
            except TimeoutError:
                pass
            except OSError:
                connection = None
                time.sleep(0.05)
            if time.monotonic() - started > notices * NOTICE_S:
                last = self.logs().strip().rpartition("\n")[2]
                said = words("The server is still starting ({seconds} s).", seconds=notices * NOTICE_S)
                print(f"{said} {last}", flush=True)
                notices += 1
        # its last lines may still be on their way
        self._reader.join(1)
        lines = self.logs().strip().splitlines()[-20:]
        raise ServeError("\n".join(lines) or words("The server did not start."))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _description(self):
        values = {"stage": self.stage, "whose": _whose(self.solution)}
        if self.process.poll() is None:
            return words("The server for stage {stage} with {whose} is running", **values)
        return words("The server for stage {stage} with {whose} has stopped", **values)

    def __repr__(self):
        return f"<{self._description()}: {self.url}>"

    def _repr_html_(self):
        text, url = html.escape(self._description()), html.escape(self.url)
        if self.process.poll() is not None:
            return f"<p>{text}</p>"
        link = f'<a href="{url}/" target="_blank" rel="noopener">{words("open the chat page")}</a>'
        return f"<p>{text}: {link} (<code>{url}</code>)</p>"


def _bind(host, port):
    """A socket on which the server can listen.

    Raises:
        ServeError: the port is taken, or there is no such host or port.
    """
    if not 0 <= port <= 65_535:
        raise ServeError(words("{port} is not a valid port: use 1 to 65535, or 0 for a free one.", port=port))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # on Windows this option would let two servers share a port
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if os.name == "posix":
            # right away, so that a second server on this port is refused before it starts
            listener.listen(128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            said = words(
                "Port {port} is in use. Stop the program that uses it, or choose another port: "
                "--port 0 (in a notebook, port=0) picks a free one.",
                port=port,
            )
        else:
            said = words("Cannot listen on {host}, port {port}: {error}", host=host, port=port, error=error)
        raise ServeError(said) from None
    return listener


def _whose(solution):
    return words("the reference answers") if solution else words("your own answers")


def _start(stage, listener, host, solution, model, tuned, thread, to_terminal):
    # -P: a file in the current folder must not be mistaken for one of our modules
    command = [sys.executable, "-P", "-m", "course.lessons", str(stage), "--grace", str(GRACE_S)]
    options = {}
    if os.name == "posix":
        command += ["--fd", str(listener.fileno())]
        # in its own session, so that the interrupt that stops a cell does not stop the server
        options = {"pass_fds": [listener.fileno()], "start_new_session": True}
    else:
        command += ["--host", host, "--port", str(listener.getsockname()[1])]
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        listener.close()
    command += ["--solution"] * solution
    command += ["--model", model] if model else []

    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": _threads(model),
    }
    environment |= {"COURSE_TUNED": "1"} if tuned else {}
    environment |= {"COURSE_THREAD": "1"} if thread else {}
    if not to_terminal:
        environment["PYTHONIOENCODING"] = "utf-8:replace"
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, **options)


def _threads(model):
    """OMP_NUM_THREADS: one for the tiny model, which more threads would only slow down; otherwise all cores."""
    if not (model or os.environ.get("COURSE_MODEL")):
        return "1"
    import psutil

    return str(psutil.cpu_count(logical=False) or 1)
