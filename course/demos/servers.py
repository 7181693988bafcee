"""Servers beside a notebook: in a thread with an event loop of its own, or in processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import uvicorn

from course import answers
from course.manifest import ROOT, find

START_S = 120
END_S = 30


def in_a_thread(app, log_level="warning"):
    """Start the app's server and return it with its address. Ends with `should_exit = True`.

    Raises:
        RuntimeError: the app did not start.
    """
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level=log_level))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the app did not start")
        time.sleep(0.01)
    return server, "http://127.0.0.1:{}".format(server.servers[0].sockets[0].getsockname()[1])


@contextlib.contextmanager
def factory_in_a_process(app):
    """Serve an app factory, given as an import string, in one process; its address.

    Raises:
        RuntimeError: the process ended, or did not answer.
    """
    port = _free_port()
    options = ["--factory", "--port", str(port), "--log-level", "error"]
    with _ended([sys.executable, "-m", "uvicorn", app, *options]) as process:
        yield _answering(process, port)


@contextlib.contextmanager
def main_in_a_process(workers, app):
    """Call the learner's `main` of 2.5 with a free port, in a process of its own; its address.

    Raises:
        NotImplementedError: 2.5 is not written yet.
        RuntimeError: the process ended, or did not answer.
    """
    file = find("2.5").work_file
    if not file.exists() or answers.is_stub("2.5", file.read_text("utf-8")):
        raise NotImplementedError("2.5")
    port = _free_port()
    call = f"from workers import main; main({port}, {workers}, {app!r})"
    with _ended([sys.executable, "-c", call], file.parent) as process:
        yield _answering(process, port)


def end(process):
    """End a server's process as Ctrl-C does, its workers included, and wait for it."""
    if os.name == "posix":
        process.send_signal(signal.SIGINT)
    elif process.poll() is None:
        # Windows sends no such signal to one process, and its workers would outlive it
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in workers:
            each.kill()
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _ended(command, *folders):
    paths = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        end(process)


def _answering(process, port):
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=START_S)
            return url
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("the server did not start")


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
