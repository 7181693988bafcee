"""The hook that keeps exercise cells, in a real IPython shell."""

import ast
import json
import os
import subprocess
import sys
import textwrap

import pytest

from course import stubs
from course.grading import forkserver
from course.manifest import ROOT, find

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
    assert "0.1 Count tokens: passed" in said[3] and find("0.1").mattered in " ".join(said[3].split())


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


def test_in_place_of_the_untouched_stub_the_answer_is_run(session):
    from course.stubs import stub

    session.file.parent.mkdir(parents=True)
    session.file.write_text(SOLVED, encoding="utf-8")
    use = "print(count_tokens(lambda *_, **__: {'input_ids': [1, 2]}, 'x'))"
    said = session("import course", stub("0.1"), use)
    assert session.file.read_text(encoding="utf-8") == SOLVED
    assert "was run instead" in said[1] and "course reset 0.1" in said[1]
    assert said[2] == "2\n"


def test_after_a_reset_the_stub_is_run(session):
    from course.stubs import stub

    session.file.parent.mkdir(parents=True)
    session.file.write_text(SOLVED, encoding="utf-8")
    use = "try:\n    count_tokens(0, 0)\nexcept NotImplementedError as error:\n    print(error)"
    said = session("import course", "course.reset('0.1')", stub("0.1"), use)
    assert said[2:] == ["", "0.1\n"]


@pytest.mark.parametrize(
    "head",
    [
        *("#|exercise 0.1\n", "# | exercise 0.1\n", "#| Exercise: 0.1\n"),
        "\n# my own words\n\n#| exercise 0.1\n",
    ],
)
def test_other_forms_of_the_marker_are_kept_too(session, head):
    cell = head + SOLVED.partition("\n")[2]
    said = session("import course", cell, 'print(course.check("0.1"))')
    assert session.file.read_text(encoding="utf-8") == cell and "passed" in said[2]


@pytest.mark.parametrize("head", ["# exercise 0.1\n", "#| exercise\n", "x = 1\n#| exercise 0.1\n"])
def test_what_only_looks_like_a_marker_is_said(session, head):
    said = session("import course", head + SOLVED.partition("\n")[2])
    assert "not saved" in said[1] and not session.file.exists()


def test_what_an_editor_wrote_is_kept_in_the_history(session):
    session.file.parent.mkdir(parents=True)
    session.file.write_text("written = 'in an editor'\n", encoding="utf-8")
    session("import course", SOLVED)
    assert session.file.read_text(encoding="utf-8") == SOLVED
    kept = [file.read_text(encoding="utf-8") for file in session.history.glob("*.py")]
    assert kept == ["written = 'in an editor'\n"]


def test_a_cell_can_import_an_earlier_exercise_as_it_is_now(session):
    changed = SOLVED + "\nversion = 2\n"
    said = session("import course", SOLVED, "import count_tokens", changed, "from count_tokens import version")
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


def test_both_faces_say_the_same_and_each_how_it_is_typed_there(session):
    said = session("import course", 'course.solution("0.1")', 'course.hint("7.7")')
    assert "not passed 0.1 yet" in said[1] and 'hint("0.1")' in said[1]
    assert 'solution("0.1", anyway=True)' in said[1] and "Traceback" not in said[1]
    assert said[2].startswith("There is no exercise 7.7. The exercises are: 0.1, ")


def test_what_uses_an_exercise_is_imported_again_with_it(session):
    first = "#| exercise 1.4\ndef ask():\n    return 1\n"
    user = "#| exercise 2.3\nfrom client import ask\n"
    ask = "import rate_limit; print(rate_limit.ask())"
    said = session("import course", first, user, ask, first.replace("1\n", "2\n"), ask)
    assert said[3] == "1\n" and said[5] == "2\n"


def test_hint_progress_and_reset(session):
    said = session("import course", 'course.hint("0.1")', "print(repr(course.progress()))", 'course.reset("0.1")')
    assert "Hint 1 of" in said[1] and "Next: 0.1" in said[2] and "contains the stub again" in said[3]
    assert "(optional)" in said[2]


def test_without_an_id_it_is_the_exercise_of_the_last_check(session):
    said = session(
        "import course",
        "try:\n    course.check()\nexcept Exception as error:\n    print(error)",
        *("#| exercise 0.1\nx = 1", 'course.check("0.1")', "course.hint()"),
        "print(course.check())",
    )
    assert said[1] == 'Which exercise? For example: check("0.1")\n'
    assert said[4].startswith("Hint 1 of") and said[5].startswith("0.1 Count tokens: not passed yet")


def test_a_stubs_verdict_points_at_the_cell(session):
    look = 'found = course.check("0.1"); print(found, found._repr_html_())'
    for cells in ([], [stubs.stub("0.1")]):
        said = session("import course", *cells, look)[-1]
        assert said.count("Write your code in the cell of exercise 0.1") == 3 and "put your code" not in said, said


def test_an_interrupted_check_is_one_line(session):
    interrupt = """
        import os, signal
        from course import notebook

        notebook._Progress.show = lambda *_: os.kill(os.getpid(), signal.SIGINT)
        """
    said = session("import course", SOLVED, textwrap.dedent(interrupt), 'course.check("0.1")')
    assert said[3].strip() == "Stopped."


def test_a_running_check_says_which_test_it_is_at_and_takes_that_back(session):
    forkserver.connect().close()  # a cold one would be said first
    frontend = """
        shell, seen = get_ipython(), []
        shell.kernel = object()
        shell.display_pub.publish = lambda data, **options: seen.append(data.get("text/plain"))
        """
    said = session(
        *("import course", SOLVED, textwrap.dedent(frontend)),
        *('verdict = course.check("0.1")', "print(seen)"),
    )
    titles = [test.title for test in find("0.1").tests]
    assert ast.literal_eval(said[4]) == [
        *(f"checking 0.1: test {n} of 3, {title} ..." for n, title in enumerate(titles, 1)),
        "checking 0.1 ...",
        None,
    ]
