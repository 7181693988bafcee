"""The fork server: a process that holds torch, transformers and the tiny Qwen ready.

Each check forks a runner from it, so that a verdict does not wait for imports. It belongs to one
state of the course: change a file of `course/` or a package, and the next check starts a new one.
It ends by itself when nobody has asked for a while, and when the JupyterLab in which it was used ends.
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from course.grading.environment import environment, temporary_folder
from course.grading.warm import warm
from course.manifest import ROOT
from course.words import words

IDLE_S = 15 * 60
LOOK_S = 5.0
"""How often it looks whether JupyterLab still runs."""
START_LIMIT_S = 90.0


class NoForkServer(Exception):
    """The fork server did not start; the message says why."""


def connect():
    """A socket to the fork server of this course, which is started if need be.

    Raises:
        NoForkServer: with the last line of its log.
    """
    folder = _folder()
    path = folder / "socket"
    _note_lab(folder)
    with contextlib.suppress(OSError):
        return _connected(path)
    start()
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            return _connected(path)
        if (folder / "failed").exists():
            break
        time.sleep(0.02)
    log = (folder / "log").read_text(encoding="utf-8", errors="replace").strip()
    last = log.splitlines()[-1] if log else words("no answer")
    raise NoForkServer(words("the grader did not start: {last}", last=last))


def is_warm():
    """Whether a fork server of this state of the course answers."""
    with contextlib.suppress(OSError, AttributeError), _connected(_folder() / "socket"):
        return True
    return False


def start():
    """Starts the fork server in the background unless it runs or is starting."""
    import fcntl

    folder = _folder()
    _note_lab(folder)
    with contextlib.suppress(OSError), _connected(folder / "socket"):
        return
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        (folder / "failed").unlink(missing_ok=True)
        with open(folder / "log", "wb") as log:
            subprocess.Popen(
                [sys.executable, "-m", "course.grading.forkserver", str(folder)],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # the child keeps the lock for as long as it lives
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )


def stop():
    """Ends the fork server of this state of the course, if it runs; the next check starts one."""
    _end(_folder())


def _connected(path):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _folder():
    """The folder of the fork server for this state of the course, readable by its owner alone."""
    state = hashlib.sha256(f"{sys.prefix}{sys.version}".encode())
    tiny = ROOT / "course" / "qwen" / "tiny"
    for file in sorted([*(ROOT / "course").rglob("*.py"), *tiny.glob("*"), ROOT / "constraints.txt"]):
        with contextlib.suppress(OSError):
            stat = file.stat()
            state.update(f"{file}{stat.st_mtime_ns}{stat.st_size}".encode())
    place = hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    try:
        folder = temporary_folder() / f"{place}-{state.hexdigest()[:12]}"
    except OSError as error:
        raise NoForkServer(str(error)) from None
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _note_lab(folder):
    # COURSE_LAB: the id of the process that course.lab has become, inherited by its kernels
    if lab := os.environ.get("COURSE_LAB"):
        (folder / f"lab-{lab}").touch()


def _labs_have_ended(folder):
    """Whether it was used in JupyterLabs, all of which have ended."""
    labs = list(folder.glob("lab-*"))
    return bool(labs) and not any(map(_runs, labs))


def _runs(lab):
    with contextlib.suppress(psutil.Error, ValueError, OSError):
        process = psutil.Process(int(lab.name.removeprefix("lab-")))
        # a younger process has only inherited the number
        return process.create_time() <= lab.stat().st_mtime + 1.0
    return False


def _end_older(folder):
    """Ends the fork servers of earlier states of this course, which nobody will ask again."""
    place = folder.name.split("-")[0]
    for other in folder.parent.glob(f"{place}-*"):
        if other != folder:
            _end(other)
            shutil.rmtree(other, ignore_errors=True)


def _end(folder):
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((folder / "pid").read_text()))
        if str(folder) in process.cmdline():
            process.terminate()
            process.wait(10)


def main(folder):
    """Imports, listens, forks a runner for each connection, ends when idle."""
    try:
        Path(folder, "pid").write_text(str(os.getpid()))
        _end_older(Path(folder))
        warm()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = os.path.join(folder, "socket")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(path)
        listener.listen(64)
    except BaseException:
        Path(folder, "failed").touch()
        raise
    gc.collect()
    gc.freeze()
    _use_huge_pages()
    asked = time.monotonic()
    while True:
        ready, _, _ = select.select([listener], [], [], LOOK_S)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not ROOT.is_dir() or not ready and _labs_have_ended(Path(folder)):
            break
        if not ready and time.monotonic() - asked > IDLE_S:
            break
        if not ready:
            continue
        asked = time.monotonic()
        connection, _ = listener.accept()
        if os.fork() == 0:
            _become_runner(connection, listener)
        connection.close()
    shutil.rmtree(folder, ignore_errors=True)


def _become_runner(connection, listener):
    try:
        listener.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        from course.grading import runner

        runner.serve_one(connection.makefile("rb"), connection.makefile("wb"))
    finally:
        # nothing is closed in order: another thread is still reading from the connection
        os._exit(0)


def _use_huge_pages():
    """Gathers this process's memory into pages of 2 MB, where the kernel can (Linux 6.1): a fork copies
    the table of pages, and a process that ends goes through it again."""
    if sys.platform != "linux":
        return
    libc, size, collapse = ctypes.CDLL(None), 2 << 20, 25
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, rights, _, _, _, *name = line.split()
        if "w" not in rights or name not in ([], ["[heap]"]):
            continue
        start, end = (int(part, 16) for part in place.split("-"))
        for page in range(-(-start // size) * size, end - size + 1, size):
            libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(size), collapse)


if __name__ == "__main__":
    main(sys.argv[1])
