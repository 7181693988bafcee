"""Both walls: what must fail fails by the test named for it and by no other, and what is right passes."""

from pathlib import Path

import pytest
import walls

from course import stubs
from course.grading import check
from course.manifest import exercises


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("wrong", walls.WRONG, ids=name)
def test_a_wrong_answer_fails_by_its_test(wrong, tmp_path):
    allowed, says = walls.caught_by(wrong)
    file = tmp_path / f"{wrong.stem}.py"
    file.write_text(walls.answer(wrong), encoding="utf-8")
    verdict = check(wrong.parent.name, file)
    failed = {test.id: test for test in verdict.tests if test.status in ("failed", "timeout")}
    full = "\n".join(verdict.full_lines())
    assert allowed[0] in failed, full
    assert set(failed) <= set(allowed), full
    assert says in failed[allowed[0]].message, full
    assert "Traceback" not in str(verdict) and len(verdict.lines()) <= 12, str(verdict)


@pytest.mark.parametrize("right", walls.RIGHT, ids=name)
def test_a_right_answer_passes(right):
    verdict = check(right.parent.name, right)
    assert verdict.passed, "\n".join(verdict.full_lines())


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
