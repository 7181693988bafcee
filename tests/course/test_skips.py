"""A skipped test is said with its reason; under CI=true it fails."""

import ast
import os
import subprocess
import sys

import pytest

from course.manifest import ROOT

PLACES = {
    "PROMETHEUS NOT TESTED": "test_metrics.py::test_promtool_finds_nothing_in_the_scrape",
    "BROWSER NOT TESTED": "test_chat_page.py::test_it_answers_ni_hao",
}


@pytest.mark.parametrize("ci", ["true", ""])
def test_what_a_machine_lacks_is_said_and_fails_in_ci(ci, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CHROMIUM"}
    # neither a browser nor promtool is on this path
    environment |= {"CI": ci, "PATH": str(tmp_path)}
    places = [str(ROOT / "tests" / "course" / place) for place in PLACES.values()]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", *places]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    for said in PLACES:
        [line] = {line for line in done.stdout.splitlines() if said in line and line.startswith(("SKIPPED", "ERROR "))}
        assert line.startswith("ERROR " if ci else "SKIPPED"), done.stdout
    assert done.returncode == (1 if ci else 0), done.stdout


@pytest.mark.parametrize("ci", ["true", ""])
def test_a_mark_that_skips_is_said_and_fails_in_ci(ci, tmp_path):
    file = tmp_path / "test_marked.py"
    marked = 'import pytest\n@pytest.mark.skipif(True, reason="NOT TESTED: {0}")\n{1} test_{0}(): pass\n'
    file.write_text(marked.format("a_def", "def") + marked.format("an_async_def", "async def"), encoding="utf-8")
    environment = {**os.environ, "CI": ci, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "conftest", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, str(file)], capture_output=True, text=True, env=environment, timeout=120)
    said = [line for line in done.stdout.splitlines() if line.startswith(("SKIPPED", "ERROR ", "FAILED"))]
    for name in ("a_def", "an_async_def"):
        [line] = [each for each in said if f"NOT TESTED: {name}" in each]
        assert line.startswith("SKIPPED") == (not ci), done.stdout
    assert done.returncode == (1 if ci else 0), done.stdout


def test_every_reason_to_skip_says_not_tested():
    skips = []
    # the exercises' tests skip in a learner's verdict, not here
    for file in [*(ROOT / "tests").glob("*.py"), *(ROOT / "tests" / "course").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name in ("skip", "skipif", "importorskip", "xfail"):
                skips.append((f"{file.name}:{node.lineno}", ast.unparse(node)))
    assert len(skips) >= 9
    assert [place for place, source in skips if "NOT TESTED" not in source] == []
