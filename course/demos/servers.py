"""Servers next to a notebook: in a thread with its own event loop, or in processes."""

import contextlib
import copy
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import psutil
import uvicorn

from course import answers
from course.lessons.local_ray import LocalRay
from course.manifest import ROOT, find, work_folder

START_S = 120
END_S = 30


def in_a_thread(app, log_level="warning"):
    """Serve the app in a thread. Returns the server and its address; `server.should_exit = True` ends it.

    Raises:
        RuntimeError: the app did not start.
    """
    # set here, because Config(log_level=...) applies it a moment later, and a server that is just ending would log
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    for logger in log_config["loggers"].values():
        logger["level"] = log_level.upper()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=log_config))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the app did not start")
        time.sleep(0.01)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@contextlib.contextmanager
def factory_in_a_process(app, needs=()):
    """Serve an app factory, given as an import string, in its own process. Yields its address.

    Args:
        needs: ids of the exercises that it cannot do without.

    Raises:
        NotImplementedError: one of these exercises is not written yet.
        RuntimeError: the process ended, or did not answer.
    """
    for id in needs:
        _need(id)
    with _served([sys.executable, "-m", "uvicorn", app, "--factory", "--port", "0"]) as url:
        yield url


@contextlib.contextmanager
def main_in_a_process(workers, app):
    """Call the learner's `main` from 2.5 with a free port, in its own process. Yields its address.

    Raises:
        NotImplementedError: 2.5 is not written yet.
        RuntimeError: the process ended, or did not answer.
    """
    _need("2.5")
    call = f"from workers import main; main({_free_port()}, {workers}, {app!r})"
    with _served([sys.executable, "-c", call], find("2.5").work_file.parent) as url:
        yield url


@contextlib.contextmanager
def script_in_a_process(file, needs=()):
    """Run a script in its own folder. It must serve on the port that PORT names, where 0 means any. Yields its address.

    Args:
        needs: ids of the exercises that it imports.

    Raises:
        NotImplementedError: one of these exercises is not written yet.
        RuntimeError: the process ended, or did not answer. The message has the last line that it printed.
    """
    for id in needs:
        _need(id)
    with _served([sys.executable, file.name], cwd=file.parent) as url:
        yield url


@contextlib.contextmanager
def copies_in_a_ray():
    """A LocalRay on which the learner's `build` from 4.4 can run.

    Raises:
        NotImplementedError: 4.4 is not written yet.
    """
    _need("4.4")
    with LocalRay(work_folder()) as local:
        yield local


def end(process):
    """End a server's process, including its workers, as Ctrl-C does, and wait until it has ended."""
    if os.name == "posix":
        process.send_signal(signal.SIGINT)
    elif process.poll() is None:
        # Windows cannot send this signal to a single process, and the workers would outlive it
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in workers:
            each.kill()
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _need(id):
    file = find(id).work_file
    if not file.exists() or answers.is_stub(id, file.read_text("utf-8")):
        raise NotImplementedError(id)


@contextlib.contextmanager
def _served(command, *folders, cwd=None):
    paths = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with open(said, "wb") as file:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, "PORT": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        try:
            yield _answering(process, said)
        finally:
            end(process)


def _answering(process, said):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        # look up the real port: one that was free a moment ago may belong to another server by now
        with contextlib.suppress(psutil.Error, httpx.TransportError):
            if port := _listening_at(psutil.Process(process.pid)):
                url = f"http://127.0.0.1:{port}"
                httpx.get(url, timeout=START_S)
                return url
        time.sleep(0.1)
    last = said.read_text("utf-8", "replace").strip().rpartition("\n")[2]
    raise RuntimeError(f"the server did not start. {last}")


def _listening_at(process):
    for each in (process, *process.children(recursive=True)):
        for connection in each.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return connection.laddr.port
    return None


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
