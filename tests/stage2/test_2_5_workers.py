"""2.5: the answer as a program: which processes answer, where they listen, whether they end.

It runs twice, at the same time: `main` called with arguments of the test's own, and as a script. In
both the app is `workers/reporting_app.py`, which needs no model: each request makes its process
report and then wait, so that the next request can only be taken by another process.

Not covered: Windows, where a process cannot be sent SIGINT alone.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import types
from pathlib import Path

import psutil
import pytest

from course.grading.fixtures import new_room
from course.grading.kit.processes import Idle, Program, free_port, runs, start_python
from course.grading.mistakes import Ended, NotLoaded, require
from course.manifest import ROOT

HERE = Path(__file__).parent / "workers"
CALLED_WITH = 2
"""Workers, where the test calls `main`; the script's number is 4."""
START_LIMIT_S = 60.0
LOOK_S = 0.2
"""Looking at all processes takes a while itself."""
IDLE_S = 2.0
"""When the answer's processes have done nothing for so long, nothing more is to come."""
MOST_WORDS = 140
"""After SIGINT, of an answer with a word every 0.05 seconds: those of seven seconds where five are allowed. On a
slow machine fewer words come in that time, not more."""


# in the room


def forbid_serving(answer, inside):
    """Makes an import that starts a server fail; otherwise it would never end."""
    inside.notes["served_at_import"] = False
    bind = socket.socket.bind

    def forbidden(self, address):
        if self.family not in (socket.AF_INET, socket.AF_INET6):
            return bind(self, address)
        inside.notes["served_at_import"] = True
        raise RuntimeError("a server starts while the file is imported")

    socket.socket.bind = forbidden
    lesson = types.ModuleType("course.lessons.stage2")
    lesson.build = lambda: None
    sys.modules[lesson.__name__] = lesson


def begin(answer, inside, arguments, environment):
    """Starts a Python process; returns its id."""
    names = getattr(getattr(answer.main, "__code__", None), "co_names", ())
    if names == ("NotImplementedError",):
        answer.main(0, 0)  # the stub: here it is found out at once
    return start_python(answer, inside, arguments, environment)


# outside


class Servers(Program):
    """One run of the answer, seen from outside."""

    def __init__(self, room, workers, arguments, port, port_8000):
        self.workers = workers
        self.given_port = self.port = port
        self.reports = []
        """One for each request that a process has begun to answer, in their order."""
        self.builders = set()
        """The ids of the processes that have built the app."""
        self.built_for_nothing = set()
        """Of those, the ones that run and have answered nothing."""
        self.at_once = 0
        """How many requests were held at the same time."""
        self.listens = set()
        """(address, port) of all that its processes listen on."""
        self._questions, self._held = [], []
        self._released = False
        self._changed = threading.Condition()
        self._control = socket.create_server(("127.0.0.1", 0), backlog=256)
        threading.Thread(target=self._take_reports, daemon=True).start()
        environment = {
            "COURSE_CONTROL": str(self._control.getsockname()[1]),
            "COURSE_PORT_8000": str(port_8000),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        super().__init__(room, arguments, environment, begin)

    def pids(self):
        """The processes that have begun to answer, in their order."""
        return list(dict.fromkeys(report["pid"] for report in self.reports))

    def ask(self):
        """Makes a request; whether there was someone to connect to."""
        question = socket.socket()
        question.settimeout(1.0)
        try:
            question.connect(("127.0.0.1", self.port))
            question.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        except OSError:
            question.close()
            return False
        self._questions.append(question)
        return True

    def fill(self):
        """Asks until `workers` processes hold a request, or no further one is going to."""
        until = time.monotonic() + START_LIMIT_S
        idle = Idle(self)
        pause = 0.1
        next_look = time.monotonic() + LOOK_S
        while len(self.pids()) < self.workers and time.monotonic() < until:
            before = len(self.reports)
            asked = self.ask()
            with self._changed:
                self._changed.wait_for(lambda: len(self.reports) > before, pause if asked else 0.02)
            if len(self.reports) > before:
                pause = 0.1
                continue
            # a socket for each process shares connections out blindly: the next one may go
            # to a process that is free
            pause = min(1.0, pause * 2) if asked else pause
            if not self.runs():
                break
            if time.monotonic() > next_look:
                next_look = time.monotonic() + LOOK_S
                if idle.since(IDLE_S):
                    break
                if not asked:
                    self._find_port()
        self.listens = self.listening()

    def release(self):
        """Lets all requests be answered, and waits until they are."""
        family = {process.pid for process in self.family()}
        self.built_for_nothing = (self.builders & family).difference(self.pids())
        with self._changed:
            self._released = True
            self.at_once = len(self._held)
            for control in self._held:
                control.close()
        for question in self._questions:
            with question, contextlib.suppress(OSError):
                question.settimeout(self.room.limit_s)
                while question.recv(4096):
                    pass

    def interrupt(self):
        """Sends SIGINT to the parent alone while an answer streams on, and ends that answer after MOST_WORDS.
        Returns whether that was necessary, and the processes that run on."""
        processes = [self.parent]
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                processes.append(psutil.Process(pid))
        words = 0
        with self._stream() as stream, contextlib.suppress(OSError):
            super().interrupt()
            while words <= MOST_WORDS and (more := stream.recv(4096)):
                words += more.count(b"word")
        return words > MOST_WORDS, [process.pid for process in self.run_on(processes)]

    def _stream(self):
        """A connection over which an answer has begun to stream."""
        stream = socket.socket()
        stream.settimeout(self.room.limit_s)
        # that it is not answered is another test's concern
        with contextlib.suppress(OSError):
            stream.connect(("127.0.0.1", self.port))
            stream.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            came = b""
            while b"word" not in came and (more := stream.recv(4096)):
                came += more
        return stream

    def _find_port(self):
        # where it listens on another port than it should, the other properties can still be seen
        ports = [port for _, port in self.listening()]
        if ports and self.port not in ports:
            self.port = ports[0]

    def _take_reports(self):
        while True:
            control, _ = self._control.accept()
            with control.makefile("rb") as reader, contextlib.suppress(OSError, ValueError):
                report = json.loads(reader.readline())
                with self._changed:
                    if "built_by" in report:
                        self.builders.add(report["built_by"])
                    else:
                        self.reports.append(report)
                        if not self._released:
                            self._held.append(control)
                            control = None
                    self._changed.notify_all()
            if control is not None:
                control.close()


@pytest.fixture(scope="module")
def seen(request):
    """What was seen of both runs; one room for all tests, for starting processes takes long."""
    with new_room(request) as room:
        room.play(forbid_serving)
        try:
            room.load()
        except NotLoaded as mistake:
            if room.notes()["served_at_import"]:
                raise NotLoaded(
                    'importing the file starts the servers: call main(8000, 4) only under `if __name__ == "__main__":`',
                    where=room.last_error()[1],
                    detail=mistake.detail,
                ) from None
            raise
        port, port_8000, scripts_port = free_port(), free_port(), free_port()
        answer = room.answer_file
        given = [str(port), str(CALLED_WITH), "reporting_app:another"]
        call = [str(HERE / "run_main.py"), str(answer.parent), answer.stem, *given]
        called = Servers(room, CALLED_WITH, call, port, port_8000)
        script = Servers(room, 4, [str(answer)], scripts_port, scripts_port)
        called.fill()
        _require_serving(room, called)
        script.fill()
        script_error = _last_error(room)
        _ask_more(called, script)
        called.release()
        script.release()
        _require_main_running(room, called)
        streams_on, runs_on = called.interrupt()
        yield types.SimpleNamespace(
            port=port,
            port_8000=port_8000,
            scripts_port=scripts_port,
            called=called,
            script=script,
            script_error=script_error,
            streams_on=streams_on,
            runs_on=runs_on,
        )


def _ask_more(*programs):
    # no process should be free to take these; one that is still starting gets the time it needs
    until = time.monotonic() + 5.0
    idles = [Idle(program) for program in programs]
    for number in itertools.count():
        if number < 8:
            for program in programs:
                program.ask()
        time.sleep(0.05)
        if number % 2 and all([idle.since(0.2) for idle in idles]) or time.monotonic() > until:
            return


def _require_serving(room, called):
    if called.reports:
        return
    address = f"127.0.0.1:{called.given_port}"
    error, where = _last_error(room)
    output = room.output()
    facts = {
        "sent": f'main(port={called.given_port}, workers={CALLED_WITH}, app="...")',
        "expected": f"{CALLED_WITH} workers serve {address} until SIGINT",
        "where": where,
    }
    if "as an import string" in output:
        raise Ended(
            "uvicorn got an app object: it starts workers only from an import string, which each worker imports",
            **facts | {"expected": "`app` is passed to uvicorn unchanged", "got": "an app object"},
            detail=output,
        )
    if "coroutine 'main' was never awaited" in output:
        raise Ended(
            "main is an async def that is never awaited: it should be an ordinary function",
            **facts | {"expected": "def main(...)", "got": "async def main(...): nothing has run"},
            detail=output,
        )
    if not called.runs():
        lines = [line for line in output.splitlines() if line.strip()]
        raise Ended(
            "main ended instead of serving",
            **facts,
            got=error or (lines[-1] if lines else "no output"),
            detail=output,
        )
    reach_it = ("127.0.0.1", "0.0.0.0", "::")
    if any(at in reach_it and port == called.given_port for at, port in called.listens):
        mistake = f"main listens on {address}, but nothing answers there"
        if not any(map(runs, called.family()[1:])):
            mistake = f"main listens on {address}, but no worker is alive to answer there"
        raise room.hung(mistake, **facts, got=error)
    mistake = f"nothing listens on {address}"
    if called.listens:
        places = [f"{f'[{at}]' if ':' in at else at}:{port}" for at, port in called.listens]
        raise Ended(mistake, **facts, got=f"listening on {', '.join(places)}", detail=output)
    raise room.hung(mistake, **facts, got=error or "main runs, but does not listen on any port")


def _require_main_running(room, called):
    if called.runs():
        return
    error, where = room.last_error()
    raise Ended(
        "main ended instead of serving: its process must keep running, because it is the parent that gets SIGINT",
        sent=f'main(port={called.given_port}, workers={CALLED_WITH}, app="...")',
        expected="main returns only when its workers have ended",
        got=error or "main has ended, but its workers still answer in the background",
        where=where,
        detail=room.output(),
    )


def _last_error(room):
    """As room.last_error; where there is no traceback, the first line that says "error"."""
    error, where = room.last_error()
    if error is None:
        said = re.search(r"^.*\berror\b.*$", room.output(), re.IGNORECASE | re.MULTILINE)
        error = said[0].strip() if said else None
    return error, where


def test_main_serves_on_the_port_that_it_is_given(seen):
    ports = {port for _, port in seen.called.listens}
    names = {seen.port_8000: 8000}
    require(
        seen.port in ports,
        f"main(port={seen.port}, ...) listens on another port",
        expected=seen.port,
        got=", ".join(str(names.get(port, port)) for port in sorted(ports)),
    )


def test_main_serves_the_app_that_it_is_given(seen):
    factories = {report["factory"] for report in seen.called.reports}
    require(
        factories == {"reporting_app:another"},
        "main does not serve the app that it was given",
        sent='main(..., app="reporting_app:another")',
        expected="reporting_app:another",
        got=", ".join(sorted(factories)),
    )


def test_as_many_processes_as_workers_answer(seen):
    called = seen.called
    pids = called.pids()
    ports = sorted({port for _, port in called.listens})
    facts = {
        "sent": f"main(..., workers={CALLED_WITH}); while one process is paused, others get requests",
        "expected": f"{CALLED_WITH} processes answer",
        "got": f"{_processes(len(pids))}: {', '.join(map(str, pids))}",
    }
    require(
        len(pids) != 1 or called.at_once < CALLED_WITH,
        "all concurrent answers come from one process: threads are not workers",
        **facts,
    )
    require(
        len(pids) >= CALLED_WITH or len(ports) == 1,
        f"only {_processes(len(pids))} answers on the given port: each process listens on its own port",
        **facts | {"got": f"listening on {', '.join(map(str, ports))}"},
    )
    require(
        len(pids) >= CALLED_WITH,
        f"only {_processes(len(pids))} answers, but workers={CALLED_WITH}",
        **facts,
    )
    require(
        len(pids) == CALLED_WITH,
        f"more processes answer than workers={CALLED_WITH} says",
        **facts,
    )


def test_each_process_builds_its_own_app(seen):
    for program in (seen.called, seen.script):
        for report in program.reports:
            pid, built_in = report["pid"], report["built_in"]
            require(
                pid in built_in,
                "the app that answers was built in another process: there is one model, created before the fork",
                expected=f"process {pid} calls the factory itself",
                got=f"it was called in process {built_in[-1]}",
            )
            alone = len(program.pids()) == program.workers
            require(
                built_in.count(pid) == 1 or not alone,
                f"each process builds the app {built_in.count(pid)} times, and loads that many models",
                expected=f"process {pid} calls the factory once",
                got=f"{built_in.count(pid)} times",
            )
        require(
            not program.built_for_nothing or len(program.pids()) != program.workers,
            "a process that serves no requests also builds the app and loads a model: only the workers should do that",
            expected=f"only the {program.workers} processes that answer build the app",
            got=f"the app is also built in process {', '.join(map(str, program.built_for_nothing))}",
        )


def test_only_127_0_0_1_is_listened_on(seen):
    for program in (seen.called, seen.script):
        others = sorted({address for address, _ in program.listens} - {"127.0.0.1"})
        require(
            not others,
            "the server can be reached from other machines",
            expected="the server listens only on 127.0.0.1",
            got=", ".join(others),
        )


def test_sigint_to_the_parent_ends_all(seen):
    parent = seen.called.pid
    require(
        parent not in seen.runs_on,
        "the parent keeps running after SIGINT (Ctrl-C)",
        sent=f"SIGINT to process {parent}",
        expected=f"the process and its {CALLED_WITH} workers end",
        got=f"still running: {', '.join(map(str, seen.runs_on))}",
    )
    require(
        not seen.runs_on,
        "the parent has ended, but its workers keep running: it must end them on SIGINT",
        sent=f"SIGINT to process {parent}",
        expected=f"the process and its {CALLED_WITH} workers end",
        got=f"still running: {', '.join(map(str, seen.runs_on))}",
    )


def test_sigint_ends_all_while_an_answer_streams(seen):
    parent = seen.called.pid
    require(
        # what does not end without a stream either has been said above
        not seen.streams_on or bool(seen.runs_on),
        "SIGINT (Ctrl-C) waits for an answer that streams without end: uvicorn waits for open"
        " connections unless you pass `timeout_graceful_shutdown`",
        sent=f"SIGINT to process {parent}, while one answer keeps streaming",
        expected="all processes end within five seconds",
        got="the answer kept streaming for more than five seconds, until the client left",
    )


def test_the_script_serves_with_4_workers_on_port_8000(seen):
    script = seen.script
    sent = "python workers.py"
    error, where = seen.script_error
    require(
        len(script.reports) > 0 or error is None,
        "run as a script, the file fails instead of serving",
        sent=sent,
        expected="4 processes answer on port 8000",
        got=error,
        where=where,
    )
    require(
        len(script.reports) > 0,
        "run as a script, the file serves nothing: its last lines must call main(8000, 4)",
        sent=sent,
        expected="4 processes answer on port 8000",
        got="listening on " + ", ".join(str(port) for _, port in script.listens)
        if script.listens
        else "nothing listens",
    )
    ports = {port for _, port in script.listens}
    require(
        bool(ports & {seen.scripts_port, 8000}),
        "run as a script, the file does not listen on port 8000",
        sent=sent,
        expected=8000,
        got=", ".join(map(str, sorted(ports))),
    )
    factories = {report["factory"] for report in script.reports}
    require(
        factories == {"course.lessons.stage2:build"},
        "run as a script, the file does not serve the default app",
        sent=sent,
        expected="course.lessons.stage2:build",
        got=", ".join(sorted(factories)),
    )
    count = len(script.pids())
    # where main does not do what `workers` says, that has been said above
    require(
        count == 4 or len(seen.called.pids()) != CALLED_WITH,
        f"when the file runs as a script, {_processes(count)} {'answers' if count == 1 else 'answer'} instead of 4",
        sent=sent,
        expected="4 processes",
        got=_processes(count),
    )


def _processes(count):
    return f"{count} process{'es' * (count != 1)}"
