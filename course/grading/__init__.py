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
from dataclasses import replace
from pathlib import Path

from course.grading.elsewhere import LIMIT_S, reach
from course.grading.environment import environment
from course.grading.verdict import TestResult, Verdict
from course.manifest import find, shown
from course.words import marked

NOT_RUN = "not run: fix the problem above first"
NOT_ELSEWHERE = marked(
    "not run: this test needs your file and a scripted model. To run it, use `course check` without --url"
)


def check(id: str, file: str | Path | None = None, on_result=None, only: list[str] | None = None) -> Verdict:
    """Checks the answer to exercise `id`.

    Args:
        id: such as "1.3".
        file: the answer; by default the exercise's file in `work/`.
        on_result: called with each test's id as its result arrives.
        only: the tests to run, by their ids; the others are not in the verdict. By default all.

    Raises:
        course.manifest.UnknownExercise: there is no such exercise.
    """
    the_exercise = find(id)
    if only is not None:
        the_exercise = replace(the_exercise, tests=tuple(test for test in the_exercise.tests if test.id in only))
    file = Path(file).absolute() if file else the_exercise.work_file
    began = time.perf_counter()
    if the_exercise.lack:
        lack = f"NOT TESTED: {the_exercise.lack}"
        tests = [TestResult(test.id, test.title, "not_run", 0, 0, lack) for test in the_exercise.tests]
    else:
        tests = _tested(the_exercise, file, on_result)
    return Verdict(
        exercise=the_exercise.id,
        title=the_exercise.title,
        file=shown(file),
        tests_file=the_exercise.tests_file,
        duration_s=time.perf_counter() - began,
        tests=tests,
        counted=not the_exercise.lack,
    )


def check_elsewhere(id: str, url: str, on_result=None) -> Verdict:
    """Checks a server that runs already, by the tests of exercise `id` that need nothing but its address. It is never
    counted.

    Raises:
        course.manifest.UnknownExercise: there is no such exercise.
        course.grading.elsewhere.NoServer: none answers there.
    """
    the_exercise, began = find(id), time.perf_counter()
    base_url, name = reach(url)
    here = replace(the_exercise, limit_s=LIMIT_S, tests=tuple(test for test in the_exercise.tests if test.elsewhere))
    found = {each.id: each for each in _tested(here, the_exercise.work_file, on_result, [base_url, name])}
    tests = []
    for test in the_exercise.tests:
        result = found.get(test.id) or TestResult(test.id, test.title, "not_run", 0, 0, NOT_ELSEWHERE, kind="elsewhere")
        result.score = result.max_score = 0
        if result.status == "passed" and test.elsewhere != "all":
            result.mistake = f"checked: {test.elsewhere}"
        tests.append(result)
    return Verdict(
        exercise=the_exercise.id,
        title=the_exercise.title,
        file="",
        tests_file=the_exercise.tests_file,
        duration_s=time.perf_counter() - began,
        tests=tests,
        counted=False,
        url=base_url,
    )


def _tested(the_exercise, file, on_result, elsewhere=None):
    """A TestResult for each test of the manifest."""
    results, problem = {}, "the grader's process ended before it reported a result"
    limit_s = 60 + the_exercise.limit_s * (len(the_exercise.tests) + 2)
    try:
        for event in _events(the_exercise, file, limit_s, elsewhere):
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


def _events(the_exercise, file, limit_s, elsewhere):
    """The runner's events, from a fork of the fork server or, where there is no fork, a new process."""
    request = {
        "exercise": the_exercise.id,
        "file": str(file),
        "elsewhere": elsewhere,
        "tests": [test.id for test in the_exercise.tests],
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
