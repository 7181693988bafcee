"""The `course` command, run as a learner runs it: a process, its output, its exit code."""

import csv
import io
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from course import stubs
from course.manifest import ROOT, exercises

SOLUTION = ROOT / "solutions" / "stage0" / "count_tokens.py"


@pytest.fixture
def course(tmp_path):
    """Runs `course ...` with an empty work folder."""

    def course(*arguments):
        environment = {**os.environ, "COURSE_WORK": str(tmp_path / "work"), "COLUMNS": "200"}
        return subprocess.run(
            [sys.executable, "-m", "course.cli", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=ROOT,
            timeout=300,
        )

    course.work = tmp_path / "work"
    return course


def write(course, text, id="0.1"):
    file = course.work / exercises()[id].file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_check_json_of_a_right_answer(course):
    done = course("check", "0.1", "--file", str(SOLUTION), "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert list(verdict) == [
        *("exercise", "passed", "score", "max_score", "duration_s", "file", "tests")
    ]
    assert verdict["exercise"] == "0.1" and verdict["passed"] is True
    assert verdict["file"] == "solutions/stage0/count_tokens.py"
    assert verdict["score"] == verdict["max_score"] == 3
    for test in verdict["tests"]:
        assert list(test) == ["id", "title", "status", "score", "max_score", "message"]
        assert test["status"] == "passed"


def test_check_of_a_wrong_answer(course):
    write(course, "def count_tokens(tokenizer, text):\n    return len(text)\n")
    done = course("check", "0.1")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) <= 12
    for said in ("not passed yet", "sent", "expected", "got", "test", "hint"):
        assert said in done.stdout
    assert json.loads(course("check", "0.1", "--json").stdout)["passed"] is False
    assert "FAILED" in course("check", "0.1", "--full").stdout


def test_check_of_everything_with_nothing_written(course):
    done = course("check", "--all", "--json")
    verdicts = json.loads(done.stdout)
    assert done.returncode == 1 and [v["exercise"] for v in verdicts] == list(exercises())
    assert all(v["score"] == 0 and v["tests"][0]["status"] == "failed" for v in verdicts)
    assert all(test["status"] == "not_run" for v in verdicts for test in v["tests"][1:])


def test_check_of_a_stage(course):
    write(course, SOLUTION.read_text(encoding="utf-8"))
    done = course("check", "--stage", "0")
    assert done.returncode == 0 and "1 of 1 exercises passed" in done.stdout
    assert len(json.loads(course("check", "--stage", "0", "--json").stdout)) == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["check", "9.9"], "There is no exercise 9.9"),
        (["check"], "Say what to check"),
        (["check", "0.1", "--all"], "Say what to check"),
        (["check", "--stage", "77"], "There is no stage 77"),
        (["check", "0.1", "--file", "nowhere.py"], "There is no file nowhere.py"),
        (["check", "--all", "--file", str(SOLUTION)], "--file goes with one exercise"),
        (["hint", "9.9"], "There is no exercise 9.9"),
        (["solution", "0.1"], "there are hints left"),
    ],
)
def test_what_cannot_be_done_is_said(course, arguments, said):
    done = course(*arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_hints_come_one_at_a_time_and_then_the_solution(course):
    hints = exercises()["0.1"].hints
    for rung, hint in enumerate(hints, 1):
        assert course("solution", "0.1").returncode == 2
        assert f"Hint {rung} of {len(hints)}: {hint.split('`')[0]}" in course("hint", "0.1").stdout
    assert f"Hint {len(hints)} of {len(hints)}" in course("hint", "0.1").stdout
    assert "+    return len(tokenizer(text" in course("solution", "0.1").stdout


def test_the_solution_after_passing_and_anyway(course):
    assert "+    return len(tokenizer(text" in course("solution", "0.1", "--anyway").stdout
    write(course, SOLUTION.read_text(encoding="utf-8").replace('"""0.1', '"""My 0.1'))
    assert course("check", "0.1").returncode == 0
    done = course("solution", "0.1")
    assert done.returncode == 0 and '-"""My 0.1' in done.stdout


def test_reset_keeps_what_was_there(course):
    file = write(course, "my = 'answer'\n")
    done = course("reset", "0.1")
    assert file.read_text(encoding="utf-8") == stubs.stub("0.1")
    kept = [line.split(" in ")[1].rstrip(".") for line in done.stdout.splitlines() if "kept" in line]
    assert (ROOT / kept[0]).read_text(encoding="utf-8") == "my = 'answer'\n"


def test_every_checked_version_is_kept(course):
    for text in ("a = 1\n", "a = 2\n", "a = 2\n"):
        write(course, text)
        course("check", "0.1")
    kept = sorted(f.read_text(encoding="utf-8") for f in (course.work / ".history/0.1").glob("*.py"))
    assert kept == ["a = 1\n", "a = 2\n"]


def test_progress(course):
    assert "Next: 0.1" in course("progress").stdout
    file = write(course, SOLUTION.read_text(encoding="utf-8"))
    assert "not checked" in course("progress").stdout
    course("check", "0.1")
    shown = course("progress").stdout
    assert "passed" in shown and "3 / 3" in shown and "Next: 1.1" in shown
    file.write_text(file.read_text(encoding="utf-8") + "# later\n", encoding="utf-8")
    assert "changed since its check" in course("progress").stdout


def test_reports(course, tmp_path):
    write(course, SOLUTION.read_text(encoding="utf-8"))
    count = sum(len(each.tests) for each in exercises().values())

    data = json.loads(course("report", "--format", "json").stdout)
    assert data["score"] == 3 and len(data["exercises"]) == len(exercises())

    junit = ElementTree.fromstring(course("report", "--format", "junit").stdout)
    assert len(junit.findall(".//testcase")) == count
    broken = junit.findall(".//failure") + junit.findall(".//error")
    assert len(broken) == count - 3 and not junit.findall(".//skipped")

    tests = json.loads(course("report", "--format", "gradescope").stdout)["tests"]
    assert len(tests) == count and sum(test["score"] for test in tests) == 3

    rows = list(csv.DictReader(io.StringIO(course("report", "--format", "csv").stdout)))
    assert [row["exercise"] for row in rows] == list(exercises())
    assert rows[0]["passed"] == "True" and rows[1]["score"] == "0"

    out = tmp_path / "scores.csv"
    assert course("report", "--format", "csv", "--output", str(out)).returncode == 0
    assert out.read_text(encoding="utf-8").startswith("exercise,title,passed")


def test_the_output_of_a_check_ends_with_it(course):
    # the fork server must not hold the pipe of whoever started it
    from course.grading import forkserver

    forkserver.stop()
    assert course("check", "0.1", "--file", str(SOLUTION)).returncode == 0
