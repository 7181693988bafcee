"""Both walls: what must fail fails by the test named for it, and what is right passes.

The first line of a wrong answer names the test that catches it and a phrase of what that says:

    # caught by: test_health_answers_while_the_model_works | says: blocking

Tests after the first may fail too; no other may.
"""

from pathlib import Path

import pytest

from course import stubs
from course.grading import check
from course.manifest import ROOT, exercises

WRONG = sorted((ROOT / "tests" / "wrong").glob("*/*.py"))
RIGHT = sorted((ROOT / "tests" / "right").glob("*/*.py"))


def name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("file", WRONG, ids=name)
def test_a_wrong_answer_fails_by_its_test(file):
    caught_by, says = file.read_text(encoding="utf-8").split("\n", 1)[0].split(" | says: ")
    allowed = [test.strip() for test in caught_by.removeprefix("# caught by: ").split(",")]
    verdict = check(file.parent.name, file)
    failed = {test.id: test for test in verdict.tests if test.status in ("failed", "timeout")}
    full = "\n".join(verdict.full_lines())
    assert allowed[0] in failed, full
    assert set(failed) <= set(allowed), full
    assert says.strip() in failed[allowed[0]].message, full
    assert "Traceback" not in str(verdict) and len(verdict.lines()) <= 12, str(verdict)


@pytest.mark.parametrize("file", RIGHT, ids=name)
def test_a_right_answer_passes(file):
    verdict = check(file.parent.name, file)
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
