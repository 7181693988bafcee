"""An exercise whose extra is not installed here is neither passed nor failed, and costs no points."""

import importlib.util
import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from course import cli, desk, records, report
from course.grading import check
from course.manifest import exercises, find

WITHOUT = [each.id for each in exercises().values() if each.extra]


@pytest.fixture(autouse=True)
def without_extras(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    extras = {each.extra for each in exercises().values()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in extras else found(name, *more))
    monkeypatch.setenv("COURSE_WORK", str(tmp_path / "work"))


def course(*arguments):
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize("id", WITHOUT)
def test_the_verdict_says_what_is_missing_and_how_to_get_it(id):
    verdict = check(id, find(id).solution_file)
    assert not verdict.passed and not verdict.counted
    assert (verdict.score, verdict.max_score) == (0, 0)
    assert {test.status for test in verdict.tests} == {"not_run"}
    said = str(verdict)
    assert said.splitlines()[0].endswith("not checked and not counted, no points are lost")
    assert f"make setup EXTRAS={find(id).extra}" in said and "FAILED" not in said
    assert "not counted" in verdict._repr_html_()


@pytest.mark.parametrize("id", WITHOUT)
def test_asked_for_by_its_name_it_is_not_passed(id):
    done = course("check", id, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (found["passed"], found["score"], found["max_score"]) == (False, 0, 0)
    assert all(test["message"].startswith("NOT TESTED: this exercise needs the package") for test in found["tests"])


def test_of_all_exercises_the_others_are_judged(monkeypatch):
    counted, left_out = find("0.1"), find(WITHOUT[0])
    for each in (counted, left_out):
        each.work_file.parent.mkdir(parents=True, exist_ok=True)
        each.work_file.write_text(each.solution_file.read_text("utf-8"), "utf-8")
    monkeypatch.setattr(desk, "of_stage", lambda stage: [counted, left_out])
    done = course("check", "--all")
    assert done.exit_code == 0, done.output
    points = f"{counted.max_score} of {counted.max_score} points"
    assert f"1 of 1 exercises passed, {points}. Not counted: {left_out.id}." in done.stdout
    verdicts = [desk.check(each) for each in (counted, left_out)]
    assert json.loads(report.WRITERS["json"](verdicts))["max_score"] == counted.max_score
    suites = ElementTree.fromstring(report.WRITERS["junit"](verdicts)).findall("testsuite")
    assert [(each.get("errors"), each.get("failures")) for each in suites] == [("0", "0")] * 2
    assert suites[1].get("skipped") == str(len(left_out.tests))
    tests = json.loads(report.WRITERS["gradescope"](verdicts))["tests"]
    assert all("status" not in each for each in tests if each["number"] == left_out.id)
    assert report.WRITERS["csv"](verdicts).splitlines()[-1].split(",")[2:5] == ["not counted", "0", "0"]


def test_progress_does_not_count_it_either():
    each = find(WITHOUT[0])
    before = desk.summary()
    each.work_file.parent.mkdir(parents=True)
    each.work_file.write_text(each.solution_file.read_text("utf-8"), "utf-8")
    desk.check(each)
    assert records.last_checked() is None
    assert desk.summary() == before
    row = next(row for row in desk.rows() if row[0] == each.id)
    assert row[2:] == (f"needs {each.extra}", "0 / 0")
    assert each.id not in desk.summary()
