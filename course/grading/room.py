"""The room as a test sees it: a process of its own in which the answer runs.

Every request crosses the process boundary as JSON. A request that outlasts its limit, a process
that ends, and an error in the answer each become a Mistake that says so.

What is covered: endless loops, `os._exit`, floods of output, children left behind, deleted working
folders, forged reports on the output, patched copies of pytest or of the grader.
What is not covered: this is no security sandbox. An answer that sets out to attack the machine, or
to find the runner's process and write into its memory, is not kept from it.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait as wait_for
from pathlib import Path

import psutil

from course.grading import inside
from course.grading.mistakes import Ended, Hung, Mistake, NotLoaded, NotWritten, Raised
from course.grading.needs import needs_of, signature_text
from course.grading.probe import ProbeOutside
from course.grading.where import last_error
from course.manifest import shown

START_LIMIT_S = 60.0
AWAITED = "an async generator is awaited: read it with `async for`, which awaits each piece"
METHOD = "fork" if hasattr(os, "fork") and os.environ.get("COURSE_START") != "spawn" else "spawn"


class Room:
    """One process with one answer. Use it as a context manager; leaving it ends all that it started."""

    open_rooms: set[int] = set()
    adopts = False
    """Whether this process adopts orphans, so that `kill_orphans` finds whatever a room has started."""
    elsewhere = False
    """Whether it is no room, but a server that runs already: see `elsewhere`."""

    def __init__(self, exercise, answer_file, tests_file):
        self.exercise = exercise
        self.answer_file = Path(answer_file)
        self.limit_s = exercise.limit_s
        self.probe = ProbeOutside(self)
        self.kept = {}
        """What the tests of a shared room keep from one to the next, by name."""
        self.spoiled = False
        """Whether something in it has hung, or its process has ended."""
        self._folder = tempfile.mkdtemp(prefix="serving-qwen-room-")
        os.mkdir(os.path.join(self._folder, "cwd"))
        context = multiprocessing.get_context(METHOD)
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=inside.main,
            args=(theirs, str(self.answer_file), str(tests_file), self._folder),
            daemon=False,
        )
        self._process.start()
        theirs.close()
        Room.open_rooms.add(self._process.pid)
        self._connection = ours
        self._numbers = itertools.count()
        self._waiting = {}
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # what tests use

    @property
    def pid(self):
        """The id of the room's process."""
        return self._process.pid

    def load(self):
        """Loads the answer.

        Raises:
            NotWritten: there is no file.
            NotLoaded: it does not parse, fails at import, or lacks a name or a parameter.
            Hung, Ended: it never ends, or ends the process.
        """
        if not self.answer_file.is_file():
            raise NotWritten(
                f"{shown(self.answer_file)} does not exist yet: run the exercise's cell in the"
                f" notebook, or type: course reset {self.exercise.id}"
            )
        needs = needs_of(self.exercise.solution_file)
        try:
            found = self._ask("load", {"needs": needs}, "importing the file")
        except Raised as raised:
            raise self._not_loaded(raised) from None
        if found.get("missing"):
            name = found["missing"]
            raise NotLoaded(f"the file does not define `{name}`, which exercise {self.exercise.id} needs")
        if found.get("not_a_class"):
            raise NotLoaded(f"`{found['not_a_class']}` is not a class")
        if found.get("signature"):
            name = found["signature"]
            raise NotLoaded(
                f"the signature of `{name}` is not the one in exercise {self.exercise.id}",
                expected=name + signature_text(needs[name]),
                got=name + found["problem"],
            )

    def play(self, scene, **arguments):
        """Runs a scene, a function of the tests file or of the kit, in the room; its result (JSON)."""
        return self.start(scene, **arguments).result()

    def start(self, scene, **arguments):
        """As `play`, but returns at once. `.result()` of what it returns waits, with the limit."""
        future = self._send("play", {**_named(scene), "arguments": arguments})
        return _Playing(self, future, scene.__name__)

    def serve(self, scene, **arguments):
        """Runs the ASGI app that the scene returns on a loopback socket; returns its base URL.

        Raises:
            Ended: the server did not start, with the last error of its log.
        """
        return self.serve_numbered(scene, **arguments)[0]

    def serve_numbered(self, scene, **arguments):
        """As `serve`, with the number that `stop_server` takes."""
        served = self._ask("serve", {**_named(scene), "arguments": arguments}, "start-up")
        if "no_app" in served:
            raise Mistake(f"there is no app to serve: create_app must return the FastAPI app, not {served['no_app']}")
        if not served["started"]:
            error, where = self.last_error()
            raise Ended(
                "the server did not start",
                got=error or "its startup failed",
                where=where,
                detail=self.output(),
            )
        return f"http://127.0.0.1:{served['port']}", served["number"]

    def stop_server(self, number):
        """Asks the server to stop, as SIGINT would."""
        self._ask("stop_server", {"number": number})

    def set(self, name):
        """Sets the scene's `inside.event(name)`."""
        self._ask("set", {"name": name})

    def notes(self):
        """What the scene has noted so far in `inside.notes`."""
        return self._ask("notes", {})

    def arrived(self, path):
        """How many requests for that path have reached the served apps so far."""
        return self._ask("arrived", {"path": path})

    def connected(self, port):
        """Whether a client's connection from that port is open as far as the served apps know."""
        return self._ask("connected", {"port": port})

    def turns(self, count=50):
        """Waits until each event loop in the room has gone round so often: what it has been told
        before (that a client left, say) has then had its effect, without any clock."""
        future = self._send("turns", {"count": count})
        if not wait_for([future], self.limit_s * 0.3).done:
            raise self.hung(
                "the event loop is blocked by a blocking call inside async def, or by a loop that never awaits anything"
            )
        self._await(future, None)

    def wait(self, holds, mistake, limit_s=None, **facts):
        """Waits until `holds()` is true.

        Raises:
            Hung: after the limit, saying `mistake` and the answer's lines that run or wait.
        """
        until = time.monotonic() + (limit_s or self.limit_s)
        while not holds():
            if time.monotonic() > until:
                raise self.hung(mistake, **facts)
            time.sleep(0.004)

    def hung(self, mistake, **facts):
        """A Hung with the lines of the answer in which it runs or waits."""
        self.spoiled = True
        where = self.where()
        if where:
            facts["where"] = where
        return Hung(mistake, detail=self.output(), **facts)

    def broken(self, mistake, **facts):
        """An Ended for a connection that broke: the process's end if it ended, else `mistake`."""
        if self._ends_within(0.5):
            return self._ended()
        error, where = self.last_error()
        if error:
            facts.setdefault("got", f"in the server's log: {error}")
            if "object async_generator can't be used in 'await'" in error:
                mistake = AWAITED
        if where:
            facts.setdefault("where", where)
        return Ended(mistake, detail=self.output(), **facts)

    def output(self):
        """What the room printed, then what it logged, the last 64 KB of each."""
        return self.printed() + self._end_of("logged")

    def printed(self):
        """The last 64 KB of its standard output."""
        return self._end_of("printed")

    def _end_of(self, name):
        with contextlib.suppress(OSError):
            with open(os.path.join(self._folder, name), "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 65_536))
                return file.read().decode("utf-8", "replace")
        return ""

    def last_error(self):
        """(last line, line in the answer) of the last traceback in the log; None where there is none."""
        return last_error(self._end_of("logged"), str(self.answer_file))

    def where(self):
        """The answer's lines that run or wait now, in one text; "" if none."""
        with contextlib.suppress(Exception):
            future = self._send("where", {})
            lines = future.result(timeout=2.0)["result"]
            return "; ".join(lines)
        return self._where_by_signal()

    def _where_by_signal(self):
        # the interpreter does not answer (native code holds its lock): faulthandler still can
        if not hasattr(signal, "SIGUSR1") or not self._process.is_alive():
            return ""
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(0.2)
            text = Path(self._folder, "hung").read_text(encoding="utf-8", errors="replace")
            pattern = rf'File "{re.escape(str(self.answer_file))}", line (\d+) in (\S+)'
            found = re.findall(pattern, text)
            return f"line {found[0][0]}, in {found[0][1]}" if found else ""
        return ""

    # the process

    def close(self):
        """Ends the room and whatever the answer left running."""
        pid = self._process.pid
        family = []
        if not Room.adopts:  # to look for them takes longer than the rest
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(pid).children(recursive=True)
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg") and os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(5)
        Room.open_rooms.discard(pid)
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        kill_orphans()
        # whoever still read from it would read from the next room's, which gets the same number
        self._listener.join(1.0)
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # requests

    def _send(self, op, arguments):
        number = next(self._numbers)
        future = Future()
        with self._lock:
            if self._waiting is None:
                raise self._ended()
            self._waiting[number] = future
        message = json.dumps({"id": number, "op": op, "arguments": arguments}).encode()
        try:
            with self._lock:
                self._connection.send_bytes(message)
        except OSError:
            raise self._ended() from None
        return future

    def _listen(self):
        while True:
            try:
                reply = json.loads(self._connection.recv_bytes())
                future = self._waiting.pop(reply["id"])
            except (EOFError, OSError):
                with self._lock:
                    waiting, self._waiting = self._waiting, None
                for future in waiting.values():
                    future.set_result({"ended": True})
                return
            except (ValueError, KeyError, TypeError):
                continue  # not one of our replies: the answer wrote into the pipe
            future.set_result(reply)

    def _ask(self, op, arguments, label=None):
        return self._await(self._send(op, arguments), label)

    def _await(self, future, label):
        try:
            reply = future.result(timeout=self.limit_s if METHOD == "fork" else START_LIMIT_S)
        except FutureTimeoutError:
            what = f" ({label})" if label and " " in label else ""
            raise self.hung(f"your code hangs{what}: it never finished") from None
        if "ended" in reply:
            raise self._ended()
        if "error" in reply:
            raise self._raised(reply["error"])
        return reply["result"]

    def _raised(self, error):
        if error["type"] == "NotImplementedError" and error["arguments"] == [self.exercise.id]:
            return NotWritten(
                f"{self.exercise.id} is not written yet: in {shown(self.answer_file)}, put your code"
                f' where it says raise NotImplementedError("{self.exercise.id}")',
                where=error["where"],
            )
        if error["type"] == "SystemExit":
            return Ended(
                "your code exits its own process (SystemExit): remove sys.exit(), exit() and quit()",
                where=error["where"],
                detail=error["traceback"],
            )
        return Raised(error)

    def _not_loaded(self, raised):
        error = raised.error
        if error["type"] in ("SyntaxError", "IndentationError", "TabError"):
            mistake, got = "the file does not parse", error["message"]
        else:
            mistake, got = "the file fails on import", error["said"]
        return NotLoaded(mistake, got=got, where=error["where"], detail=error["traceback"])

    def _ends_within(self, limit_s):
        # not join(limit_s): that waits for ever, because the room has closed its end of the pipe by
        # which join would see it live
        until = time.monotonic() + limit_s
        while self._process.is_alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    def _ended(self):
        self.spoiled = True
        self._ends_within(2.0)
        code = self._process.exitcode
        return Ended(
            "the process that runs your code ended unexpectedly:"
            " the code calls os._exit, kills the process, or crashes it",
            got=f"signal {-code}" if code is not None and code < 0 else f"exit code {code}",
            detail=self.output(),
        )


class _Playing:
    def __init__(self, room, future, label):
        self._room, self._future, self._label = room, future, label

    def done(self):
        return self._future.done()

    def result(self):
        return self._room._await(self._future, self._label)


def kill_orphans():
    """Ends processes that rooms left behind; where the runner adopts orphans, that is all of them."""
    for _ in range(20):
        strays = [child for child in psutil.Process().children() if child.pid not in Room.open_rooms]
        if not strays:
            return
        for stray in strays:
            # its children become ours when it ends: the next round is theirs
            with contextlib.suppress(psutil.Error):
                stray.kill()
            with contextlib.suppress(psutil.Error):
                stray.wait(1)


def _named(scene):
    return {"module": scene.__module__, "scene": scene.__name__}
