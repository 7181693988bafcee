"""The autograder: `check` runs an answer in a room of its own and returns the verdict.

Four processes: the asker (`check` and `verdict`, here), the fork server (`forkserver`, `warm`), the runner,
forked from it for each check (`runner`, `fixtures`, `room`, `needs`, the tests themselves), and the rooms,
forked from the runner (`settle`, `inside`, `probe`, `where`). `kit` is what tests use, in both of the last.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from course.grading.environment import environment
from course.grading.verdict import TestResult, Verdict
from course.manifest import Exercise, find, shown

NOT_RUN = "not run: the message above comes first"


def check(id: str, file: str | Path | None = None, on_result=None) -> Verdict:
    """Checks the answer to exercise `id`.

    Args:
        id: such as "1.3".
        file: the answer; by default the exercise's file in `work/`.
        on_result: called with each test's id as its result arrives.

    Raises:
        course.manifest.UnknownExercise: there is no such exercise.
    """
    the_exercise = find(id)
    file = Path(file).absolute() if file else the_exercise.work_file
    began = time.perf_counter()
    results, problem = {}, "the grader's process ended before it had reported"
    limit_s = 60 + the_exercise.limit_s * (len(the_exercise.tests) + 2)
    try:
        for event in _events(the_exercise, file, limit_s):
            if "problem" in event:
                problem = event["problem"]
            elif "test" in event:
                results.setdefault(event["test"], []).append(event)
                if on_result:
                    on_result(event["test"])
            elif "finished" in event:
                problem = "this test did not run"
    except TimeoutError:
        problem = f"the check took more than {limit_s:.0f} s and was stopped"
    return Verdict(
        exercise=the_exercise.id,
        title=the_exercise.title,
        file=shown(file),
        tests_file=the_exercise.tests_file,
        duration_s=time.perf_counter() - began,
        tests=_results(the_exercise, results, problem),
    )


def _results(the_exercise: Exercise, results, problem):
    found = []
    for test in the_exercise.tests:
        reports = results.get(test.id, [])
        if reports:
            worst = next((each for each in reports if each["status"] != "passed"), reports[0])
            result = {name: value for name, value in worst.items() if name != "test"}
        else:
            earlier = any(each.status in ("failed", "timeout") for each in found)
            result = {"status": "not_run", "mistake": NOT_RUN if earlier else problem}
        score = test.points if result["status"] == "passed" else 0
        found.append(TestResult(id=test.id, title=test.title, score=score, max_score=test.points, **result))
    return found


def _events(the_exercise, file, limit_s):
    """The runner's events, from a fork of the fork server or, where there is no fork, a new process."""
    request = {
        "exercise": the_exercise.id,
        "file": str(file),
        "environment": {k: v for k, v in os.environ.items() if k.startswith("COURSE_") or k == "PATH"},
    }
    line = json.dumps(request).encode() + b"\n"
    if hasattr(os, "fork") and os.environ.get("COURSE_START") != "spawn":
        from course.grading import forkserver

        with forkserver.connect() as connection:
            connection.sendall(line)
            connection.settimeout(limit_s)
            with connection.makefile("rb") as reader:
                yield from map(json.loads, reader)
        return
    with subprocess.Popen(
        [sys.executable, "-m", "course.grading.runner"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdin.write(line)
        process.stdin.flush()
        yield from map(json.loads, process.stdout)
        process.stdin.close()
