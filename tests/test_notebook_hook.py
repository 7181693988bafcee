"""The hook that keeps exercise cells, in a real IPython shell."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from course.manifest import ROOT

SOLVED = """#| exercise 0.1
def count_tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
"""


@pytest.fixture
def session(tmp_path):
    """Runs cells in one fresh IPython shell; returns what each printed, and the work folder."""

    def session(*cells):
        program = textwrap.dedent(
            """
            import contextlib, io, json, sys
            from IPython.core.interactiveshell import InteractiveShell

            shell = InteractiveShell.instance(colors="NoColor")
            said = []
            for cell in json.load(sys.stdin):
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    shell.run_cell(cell, store_history=True)
                said.append(out.getvalue())
            print(json.dumps(said))
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(cells),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
            env={
                **os.environ,
                "COURSE_WORK": str(tmp_path / "work"),
                "IPYTHONDIR": str(tmp_path / "ipython"),
            },
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    session.file = tmp_path / "work" / "stage0" / "count_tokens.py"
    session.history = tmp_path / "work" / ".history" / "0.1"
    return session


def test_a_cell_is_kept_and_defined_and_checked(session):
    said = session("import course", SOLVED, "print(count_tokens)", 'print(course.check("0.1"))')
    assert session.file.read_text(encoding="utf-8") == SOLVED
    assert "function count_tokens" in said[2]
    assert "0.1 Count tokens: passed" in said[3]


def test_a_cell_that_does_not_parse_is_kept(session):
    broken = "#| exercise 0.1\ndef count_tokens(tokenizer, text:\n"
    said = session("import course", broken, 'print(course.check("0.1"))')
    assert session.file.read_text(encoding="utf-8") == broken
    assert "does not parse" in said[2]


def test_a_cell_with_top_level_await_is_kept(session):
    cell = "#| exercise 0.1\nimport asyncio\nawait asyncio.sleep(0)\n"
    session("import course", cell)
    assert session.file.read_text(encoding="utf-8") == cell


def test_a_cell_that_ran_before_the_import_is_kept_too(session):
    session("x = 1", SOLVED, "import course")
    assert session.file.read_text(encoding="utf-8") == SOLVED


def test_the_untouched_stub_does_not_replace_an_answer(session):
    from course.stubs import stub

    session.file.parent.mkdir(parents=True)
    session.file.write_text(SOLVED, encoding="utf-8")
    said = session("import course", stub("0.1"))
    assert session.file.read_text(encoding="utf-8") == SOLVED
    assert "course reset 0.1" in said[1]


def test_what_an_editor_wrote_is_kept_in_the_history(session):
    session.file.parent.mkdir(parents=True)
    session.file.write_text("written = 'in an editor'\n", encoding="utf-8")
    session("import course", SOLVED)
    assert session.file.read_text(encoding="utf-8") == SOLVED
    kept = [file.read_text(encoding="utf-8") for file in session.history.glob("*.py")]
    assert kept == ["written = 'in an editor'\n"]


def test_a_cell_can_import_an_earlier_exercise_as_it_is_now(session):
    changed = SOLVED + "\nversion = 2\n"
    said = session(
        "import course", SOLVED, "import count_tokens", changed, "from count_tokens import version"
    )
    assert said[-1] == "" and session.file.read_text(encoding="utf-8") == changed


def test_a_script_s_last_lines_are_not_run_in_a_cell(session):
    cell = SOLVED + '\nif __name__ == "__main__":\n    print("as a script")\n'
    said = session("import course", cell, "print(__name__, count_tokens.__module__)")
    assert said[1:] == ["", "__main__ count_tokens\n"]


def test_an_unknown_exercise_is_said(session):
    assert "There is no exercise 7.7" in session("import course", "#| exercise 7.7\nx = 1")[1]


def test_an_ordinary_cell_is_not_kept(session):
    session("import course", "x = 1  # exercise 0.1")
    assert not session.file.exists()


def test_hint_progress_and_reset(session):
    said = session(
        "import course", 'course.hint("0.1")', "print(repr(course.progress()))", 'course.reset("0.1")'
    )
    assert "Hint 1 of" in said[1] and "Next: 0.1" in said[2] and "is the stub again" in said[3]
