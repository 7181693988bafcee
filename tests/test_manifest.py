"""The manifest, the solutions, the tests and the walls are one course; each message says what to do."""

import ast
import re
from collections import Counter

import pytest
import walls

from course import stubs
from course.manifest import ROOT, UnknownExercise, exercises, find

FEWEST = {"2.1": (8, 4), "2.2": (8, 4), "2.3": (8, 4), "2.4": (8, 4)}
"""How many wrong and right answers a wall needs; 6 and 3 where nothing is said."""


@pytest.mark.parametrize("each", exercises().values(), ids=lambda each: each.id)
def test_an_exercise_is_whole(each):
    assert each.solution_file.is_file(), f"write {each.solution_file}"
    tests = ROOT / each.tests_file
    assert tests.is_file(), f"write {tests}"
    tree = ast.parse(tests.read_text(encoding="utf-8"))
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[:5] == "test_"]
    listed = [test.id for test in each.tests]
    assert sorted(defined) == sorted(listed), "list each test of the file in exercises.toml, once"
    for test in each.tests:
        named = test.hint is None or test.hint in range(1, len(each.hints) + 1)
        assert named, f"{test.id}: there is no hint {test.hint}"
    assert len(each.hints) >= 3 and all(each.hints), "write at least three hints"
    assert len(re.findall(r"[.?!](?= |$)", each.mattered)) == 2, "say in two sentences what mattered"
    assert all(test.points > 0 and test.title for test in each.tests)
    assert len({test.title for test in each.tests}) == len(each.tests), "give each test its title"


@pytest.mark.parametrize("id", exercises())
def test_the_walls_are_high_enough(id):
    wrong, right = FEWEST.get(id, (6, 3))
    found = Counter(file.parent.name for file in walls.WRONG)[id]
    assert found >= wrong, f"{id} has {found} wrong answers; write at least {wrong}"
    found = Counter(file.parent.name for file in walls.RIGHT)[id]
    assert found >= right, f"{id} has {found} right answers; write at least {right}"


@pytest.mark.parametrize("file", walls.WRONG, ids=lambda f: f.stem)
def test_a_wrong_answer_is_whole(file):
    tests, _ = walls.caught_by(file)
    assert set(tests) <= {test.id for test in find(file.parent.name).tests}
    ast.parse(walls.answer(file))


@pytest.mark.parametrize(
    ("old", "says"),
    [("in no answer", "edit 1 does not fit: its old text occurs 0 times"), ("", "occurs [1-9]"), (">>>>", "# base:")],
)
def test_an_edit_that_does_not_fit_is_named(tmp_path, old, says):
    id = next(iter(exercises()))
    (tmp_path / id).mkdir()
    file = tmp_path / id / "wrong.edit"
    file.write_text(f"# caught by: test_x | says: y\n# base: solution\n<<<<\n{old}\n====\n>>>>\n")
    with pytest.raises(ValueError, match=f"wrong.edit: .*{says}"):
        walls.answer(file)


def test_no_file_is_without_an_exercise():
    known = {each.solution_file for each in exercises().values()}
    files = {f for f in (ROOT / "solutions").rglob("*.py") if f.name != "__init__.py"}
    assert files == known
    known = {ROOT / each.tests_file for each in exercises().values()}
    assert set((ROOT / "tests").glob("stage*/test_*.py")) == known
    walls = {folder.name for wall in ("wrong", "right") for folder in (ROOT / "tests" / wall).iterdir()}
    assert walls <= set(exercises())


def test_stubs_hold_nothing_of_the_solution_but_the_contract():
    for id, each in exercises().items():
        stub = stubs.stub(id)
        lines = each.solution_file.read_text(encoding="utf-8").splitlines()
        solution = ast.walk(ast.parse("\n".join(lines)))
        given = {ast.dump(n) for node in solution if stubs.is_given(node, lines) for n in ast.walk(node)}
        assert f'NotImplementedError("{id}")' in stub
        for node in ast.walk(ast.parse(stub)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.dump(node) not in given:
                assert ast.get_docstring(node) or node.name == "__init__", f"{id}: {node.name}"
                assert isinstance(node.body[-1], ast.Raise), f"{id}: {node.name}"
        assert stub != each.solution_file.read_text(encoding="utf-8")


def test_an_unknown_exercise_is_answered_with_those_there_are():
    with pytest.raises(UnknownExercise, match=r"9\.9.*1\.1, 1\.2"):
        find("9.9")


def test_solutions_stand_alone():
    for file in (ROOT / "solutions").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for found in names:
                assert found.split(".")[0] not in ("tests", "solutions"), f"{file} imports {found}"
                assert not found.startswith("course.grading"), f"{file} imports {found}"
