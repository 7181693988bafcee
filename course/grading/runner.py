"""The runner: the second process. It runs one exercise's tests with plain pytest and reports.

A test counts as passed only if it reported so in all its phases; what is missing, skipped or never
collected is `not_run`.
"""

import ctypes
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from course.grading import fixtures
from course.grading.mistakes import Ended, Hung, Mistake, NotLoaded, NotWritten
from course.grading.room import Room, kill_orphans
from course.manifest import ROOT, find

TEST_LIMIT_S = 120.0
"""A test that takes longer hangs itself: each call into a room has a limit of its own. Twelve times the exercise's
limit is allowed in any case."""
LONGEST_PRINTED = 200
"""So much of what the answer printed last, its learner's own tool, stands in a verdict."""
UNUSED = (
    "cacheprovider debugging doctest faulthandler legacypath logging pastebin setuponly setupplan stepwise"
    " threadexception unittest unraisableexception warnings"
).split()
"""Parts of pytest that cost time at its start or around each test, and that no test here needs."""
MOST_HANGS = 2
"""After so many hanging tests the rest are not run, or a learner would wait for each limit."""


def run(id, file, tests, send, elsewhere=None):
    """Runs those tests of exercise `id` on `file`, or on the server `elsewhere`, see fixtures.ELSEWHERE; calls
    `send(event)` for each result and at the end.

    Events: {"test": id, "status", "kind", "mistake", "facts", "detail"} as in verdict.TestResult,
    {"problem": why the tests cannot go on}, and {"finished": True}.
    """
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    adopt_orphans()
    the_exercise = find(id)
    results = _Results(the_exercise, Path(file), tests, send, elsewhere)
    # pytest takes more than a path from its arguments: the folder's name may be anything
    os.chdir(ROOT)
    pytest.main(
        [
            the_exercise.tests_file,
            *("-q", "-s", "--noconftest", "--tb=short", "--no-summary", "--assert=plain"),
            *(f"-pno:{plugin}" for plugin in UNUSED),
            *("--rootdir", ".", "-c", os.devnull),
        ],
        plugins=[results, fixtures],  # by its name pytest would look through all installed packages
    )
    kill_orphans()
    send({"finished": True})


class _Results:
    """The pytest plugin that says what is graded, and sends what comes of it."""

    def __init__(self, the_exercise, file, tests, send, elsewhere):
        self.graded, self.send, self.elsewhere = (the_exercise, file), send, elsewhere
        self.order = {test: number for number, test in enumerate(tests)}
        self.hangs = 0
        self.test = None

    def pytest_configure(self, config):
        config.stash[fixtures.GRADED] = self.graded
        config.stash[fixtures.ELSEWHERE] = self.elsewhere

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.originalname in self.order]
        # the manifest's order is the verdict's, and what comes after a hang may not be run
        items.sort(key=lambda item: self.order[item.originalname])

    def pytest_runtest_logstart(self, nodeid, location):
        self.test = {"status": None}
        limit_s = max(TEST_LIMIT_S, 12 * self.graded[0].limit_s)
        self.watch = threading.Timer(limit_s, self.give_up, [threading.get_ident()])
        self.watch.daemon = True
        self.watch.start()

    def give_up(self, ident):
        stack = traceback.extract_stack(sys._current_frames()[ident])
        places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in stack[-6:]]
        self.send({"problem": f"the grader itself hangs: {', '.join(places)}"})
        end_everything()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.excinfo is not None:
            self.note(item, report, call.excinfo)
        elif report.when == "call" and report.passed and self.test["status"] is None:
            notes = [text for name, text in report.user_properties if name == "note"]
            self.test = _result("passed", "note" if notes else "", "; ".join(notes))
        return report

    def note(self, item, report, excinfo):
        error = excinfo.value
        if report.skipped:
            self.test = _result("not_run", "skipped", f"skipped: {error}")
            return
        if isinstance(error, Mistake):
            result = _result(error.status, error.kind, error.mistake, error.facts, error.detail)
        else:
            text = f"{type(error).__name__}: {error}"
            result = _result("failed", "grader", "the grader itself failed", {"got": text})
            result["detail"] = str(report.longrepr)
        room = item.funcargs.get("room") or item.funcargs.get("shared_room")
        if room and (printed := room.printed().strip()):
            result["facts"]["printed"] = printed[-LONGEST_PRINTED:]
        if self.test["status"] in (None, "passed"):
            self.test = result
        self.hangs += isinstance(error, Hung)
        never_ran = isinstance(error, NotWritten | NotLoaded)
        if report.when == "setup":  # the room's fixture could not load the answer
            never_ran = never_ran or isinstance(error, Hung | Ended)
        if never_ran or self.hangs >= MOST_HANGS:
            item.session.shouldstop = "the rest cannot be run"

    def pytest_runtest_logfinish(self, nodeid, location):
        self.watch.cancel()
        name = nodeid.split("::")[-1].split("[")[0]
        self.send({"test": name, **self.test})

    def pytest_collectreport(self, report):
        if report.failed:
            self.send({"problem": f"the tests could not be loaded: {report.longrepr}"})


def _result(status, kind="", mistake="", facts=None, detail=""):
    return {"status": status, "kind": kind, "mistake": mistake, "facts": dict(facts or {}), "detail": detail}


def adopt_orphans():
    """Makes processes whose parent ends children of this one, so that they can be ended too."""
    if sys.platform == "linux":
        Room.adopts = ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER


def end_everything():
    """Ends the rooms, what they left behind, and this process."""
    for _ in range(50):
        for pid in list(Room.open_rooms):
            try:
                os.kill(pid, 9)
            except OSError:
                Room.open_rooms.discard(pid)
        kill_orphans()
        if not Room.open_rooms:
            break
        time.sleep(0.01)
    os._exit(1)


def serve_one(reader, writer):
    """Reads one request line, runs it, writes events as lines; ends all when the asker leaves."""
    request = json.loads(reader.readline())
    # the fork server's are those of whoever started it
    for name in [name for name in os.environ if name.startswith("COURSE_")]:
        del os.environ[name]
    os.environ.update(request["environment"])

    def leave_with_the_asker():
        reader.read()
        end_everything()

    threading.Thread(target=leave_with_the_asker, daemon=True).start()

    def send(event):
        writer.write(json.dumps(event, default=repr).encode() + b"\n")
        writer.flush()

    run(request["exercise"], request["file"], request["tests"], send, request["elsewhere"])


def main():
    """`python -m course.grading.runner`: one request on standard input, events on standard output."""
    reader = os.fdopen(os.dup(0), "rb")
    writer = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    serve_one(reader, writer)
    os._exit(0)


if __name__ == "__main__":
    main()
