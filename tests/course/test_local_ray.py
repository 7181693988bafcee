"""The Ray of exercise 4.4: nobody else reaches it, and nothing of it is left."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from course.grading import check
from course.lessons import ray_forks
from course.lessons.local_ray import FIRST_PROCESS
from course.manifest import ROOT, find

LIMIT_S = 120
MANY = 7
"""Processes of a Ray once it has begun to start those that could become copies."""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


MARK = "COURSE_MARK"
"""A check hands on what begins with COURSE_: by this a test knows its Ray from one of another test's."""


def first_processes(mark):
    """{id: folder} of the LocalRays with that mark."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if FIRST_PROCESS in command:
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark:
                    found[process.pid] = command[-2]
    return found


def has_forks(mark):
    """Whether a process of that Ray was forked from the one that has imported it."""
    servers = [pid for pid in first_processes(mark) if os.getsid(pid) != pid]
    return any(psutil.Process(pid).children() for pid in servers)


def session(pid):
    """All processes in the session of that one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Watch:
    """What the Rays with that mark are made of, seen again and again until it is stopped."""

    def __init__(self, mark):
        self._mark = mark
        self._stop = threading.Event()
        self.processes, self.folders, self.listens = set(), set(), set()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self):
        while not self._stop.wait(0.3):
            for pid, folder in first_processes(self._mark).items():
                self.folders.add(folder)
                for process in session(pid):
                    try:
                        connections = process.net_connections("inet")
                    except psutil.Error:
                        continue
                    self.processes.add(process)
                    listening = (c for c in connections if c.status == psutil.CONN_LISTEN)
                    self.listens |= {(c.laddr.ip, process.name()) for c in listening}

    def stop(self):
        self._stop.set()
        self._thread.join()


def run_on(processes):
    return [each for each in list(processes) if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_after_a_check_nothing_is_left(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_RAY", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # somebody's cluster, which is not asked
    monkeypatch.setenv(MARK, str(tmp_path))
    home = set(os.listdir(Path.home()))
    watch = Watch(str(tmp_path))
    verdict = check("4.4", find("4.4").solution_file)
    watch.stop()
    assert verdict.passed, "\n".join(verdict.full_lines())
    assert len(watch.processes) > MANY and len(watch.folders) == 1
    assert {each for each in watch.listens if each[0] not in LOOPBACK} == set()
    assert run_on(watch.processes) == []
    assert [folder for folder in watch.folders if Path(folder).exists()] == []
    assert set(os.listdir(Path.home())) <= home


def test_it_ends_with_the_process_that_made_it(tmp_path):
    make = "import time; from course.lessons.local_ray import LocalRay; LocalRay(); time.sleep(600)"
    watch = Watch(str(tmp_path))
    maker = subprocess.Popen([sys.executable, "-c", make], cwd=ROOT, env={**os.environ, MARK: str(tmp_path)})
    until = time.monotonic() + LIMIT_S
    begun = False
    while not begun and time.monotonic() < until:
        time.sleep(0.1)
        begun = len(watch.processes) >= MANY and has_forks(str(tmp_path)) == ray_forks.forks
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    while run_on(watch.processes) and time.monotonic() < until:
        time.sleep(0.1)
    watch.stop()
    assert begun
    assert run_on(watch.processes) == []
    assert [folder for folder in watch.folders if Path(folder).exists()] == []
