"""Both walls: what must fail fails by the test named for it, and what is right passes.

With --whole a wrong answer takes its exercise's other tests, too: it may fail only those that its header names.
"""

import re
from pathlib import Path

import pytest
import walls

from course import stubs, words
from course.grading import check
from course.lessons.local_ray import LocalRay
from course.manifest import ROOT, exercises


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.fixture(scope="module")
def one_ray():
    """The folder of a Ray for the answers to 4.4: to start one takes longer than most of them."""
    with LocalRay(paths=[ROOT / "tests" / "stage4" / "ray_cluster"]) as local:
        yield str(local.folder)


@pytest.fixture
def shared_ray(request, monkeypatch):
    if request.node.callspec.id.split("-")[0] == "4.4":
        monkeypatch.setenv("COURSE_RAY", request.getfixturevalue("one_ray"))


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("wrong", walls.WRONG, ids=name)
def test_a_wrong_answer_fails_by_its_test(wrong, tmp_path, pytestconfig, monkeypatch):
    allowed, says = walls.caught_by(wrong)
    file = tmp_path / f"{wrong.stem}.py"
    file.write_text(walls.answer(wrong), encoding="utf-8")
    verdict = check(wrong.parent.name, file, only=None if pytestconfig.getoption("whole") else allowed[:1])
    failed = {test.id: test for test in verdict.tests if test.status in ("failed", "timeout")}
    full = "\n".join(verdict.full_lines())
    assert allowed[0] in failed, full
    assert set(failed) <= set(allowed), full
    assert says in failed[allowed[0]].message, full
    assert "Traceback" not in str(verdict) and len(verdict.lines()) <= 12, str(verdict)
    # and in Chinese
    first = verdict.first_wrong.mistake
    monkeypatch.setenv("COURSE_LANG", "zh")
    assert re.search("[\u4e00-\u9fff]", words.words(first)), f"no text of zh.po is this one: {first}"
    assert words.words(first)[:20] in str(verdict) and len(verdict.lines()) <= 12, str(verdict)


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("right", walls.RIGHT, ids=name)
def test_a_right_answer_passes(right):
    verdict = check(right.parent.name, right)
    assert verdict.passed, "\n".join(verdict.full_lines())


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("id", exercises())
def test_the_reference_passes(id):
    verdict = check(id, exercises()[id].solution_file)
    assert verdict.passed, "\n".join(verdict.full_lines())


@pytest.mark.parametrize("id", exercises())
def test_the_stub_fails_kindly(id, tmp_path):
    file = tmp_path / "stub.py"
    file.write_text(stubs.stub(id), encoding="utf-8")
    verdict = check(id, file)
    assert verdict.score == 0 and not verdict.passed
    assert f"{id} is not written yet" in verdict.first_wrong.message, str(verdict)
    assert "Traceback" not in str(verdict)
