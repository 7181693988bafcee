"""What a process does first to become a room."""

import contextlib
import ctypes
import faulthandler
import io
import logging
import os
import signal
import sys
import threading
import time

OUTPUTS = ("printed", "logged")
"""The files of the standard output and of the standard error, where logs and tracebacks go."""
MOST_OUTPUT = 4_000_000
"""Bytes of output that are kept while the answer runs; older ones are dropped."""


def settle(connection, folder):
    """Cuts the process off from the runner that it was forked from. Its output goes to files in
    `folder`; its working folder is `folder/cwd`.

    Returns {"stdout": ..., "stderr": ...}, streams for the grader's own use: those in `sys` are the
    answer's, which may close them, or put other objects or None in their place.
    """
    # first of all: what goes wrong below is to be found there
    keep_all = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    printed, logged = (os.open(os.path.join(folder, name), keep_all, 0o600) for name in OUTPUTS)
    os.dup2(printed, 1)
    os.dup2(logged, 2)
    if hasattr(os, "setsid"):
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the room dies with its runner
    os.chdir(os.path.join(folder, "cwd"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    hung = os.open(os.path.join(folder, "hung"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    if hasattr(os, "fork"):
        # nothing that the runner has open (its report above all) may be within the answer's reach;
        # not closed but replaced, since objects of the runner's still close those numbers one day
        keep = {0, 1, 2, connection.fileno(), nothing, hung}
        for fd in map(int, os.listdir("/dev/fd")):
            if fd not in keep:
                with contextlib.suppress(OSError):
                    os.fstat(fd)
                    os.dup2(nothing, fd, inheritable=False)
    sys.stdin = open(0, closefd=False, encoding="utf-8")
    streams = {}
    for name, fd in (("stdout", 1), ("stderr", 2)):
        text = {"encoding": "utf-8", "errors": "replace"}
        streams[name] = open(os.dup(fd), "w", buffering=1, **text)
        # unbuffered: what was printed is in the file, whatever becomes of the stream
        stream = io.TextIOWrapper(open(fd, "wb", 0, closefd=False), write_through=True, **text)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    logging.lastResort = logging.StreamHandler(streams["stderr"])
    # pytest, from whose process this one was forked, keeps such errors and all logs to itself
    logging.root.handlers.clear()
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=hung, all_threads=True)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        # after a fork torch renews its thread pool at the first use, and of two threads that use
        # it first at once (transformers loads weights in threads) one may find none
        torch.set_num_threads(1)
    threading.Thread(target=_bound_output, args=(folder,), daemon=True).start()
    return streams


def _bound_output(folder):
    paths = [os.path.join(folder, name) for name in OUTPUTS]
    while True:
        time.sleep(0.2)
        for path in paths:
            with contextlib.suppress(OSError):
                if os.path.getsize(path) > MOST_OUTPUT:
                    os.truncate(path, 0)
