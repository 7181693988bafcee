"""An answer as a program: a process that the room starts, its children, where they listen.

    program = Program(room, [str(room.answer_file)], {"NAME": "value"})
    program.interrupt()      # SIGINT to the parent alone
    program.family()         # it and its children, as psutil's processes

Not covered: Windows, where a process cannot be sent SIGINT alone.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import psutil


def start_python(answer, inside, arguments, environment):
    """A scene: starts a Python process; returns its id."""
    process = subprocess.Popen([sys.executable, *arguments], env=os.environ | environment, stdin=subprocess.DEVNULL)
    return process.pid


class Program:
    """A Python process that the room has started, seen from outside."""

    def __init__(self, room, arguments, environment=None, scene=start_python):
        """Args:
        arguments: those after `python`.
        environment: what is added to the room's.
        scene: another one that starts it, and returns its id.
        """
        self.room = room
        self.pid = room.play(scene, arguments=arguments, environment=environment or {})
        self.parent = psutil.Process(self.pid)

    def family(self):
        """The process and its children, as far as they run."""
        with contextlib.suppress(psutil.Error):
            return [self.parent, *self.parent.children(recursive=True)]
        return []

    def runs(self):
        """Whether the parent runs."""
        return runs(self.parent)

    def listening(self):
        """{(address, port)} of all that it and its children listen on."""
        found = set()
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                for each in process.net_connections("tcp"):
                    if each.status == psutil.CONN_LISTEN:
                        found.add((each.laddr.ip, each.laddr.port))
        return found

    def interrupt(self):
        """Sends SIGINT to the parent alone, if it runs."""
        with contextlib.suppress(psutil.Error):
            self.parent.send_signal(signal.SIGINT)

    def run_on(self, processes):
        """Waits for these to end, with the limit. Returns those that run on."""
        until = time.monotonic() + self.room.limit_s
        while any(map(runs, processes)) and time.monotonic() < until:
            time.sleep(0.01)
        return [process for process in processes if runs(process)]


class Idle:
    """Whether a program has done nothing for a while."""

    def __init__(self, program):
        self._program = program
        self._spent = 0.0
        self._since = time.monotonic()

    def since(self, seconds):
        """Whether that has been so for `seconds`, as far as earlier calls have seen."""
        now = time.monotonic()
        spent, waits = 0.0, True
        for process in self._program.family():
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                spent += times.user + times.system
                waits = waits and process.status() not in (
                    psutil.STATUS_RUNNING,
                    psutil.STATUS_DISK_SLEEP,
                )
        # what supervises the others wakes up from time to time
        if not waits or abs(spent - self._spent) > 0.05:
            self._spent, self._since = spent, now
        return now - self._since > seconds


def runs(process):
    """Whether it has not ended; a zombie has."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def free_port():
    """A port on which nobody listens, and which no connection takes for its own end meanwhile."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
