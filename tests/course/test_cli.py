"""The `course` command: its output, its exit code."""

import copy
import csv
import functools
import html
import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import commands
import pytest

from course import desk, grading, records, stubs
from course.grading import Verdict, check, verdict
from course.manifest import ROOT, exercises

SOLUTION = ROOT / "solutions" / "stage0" / "count_tokens.py"


@pytest.fixture
def course(tmp_path):
    """Runs `course ...` with an empty work folder."""

    course = functools.partial(commands.course_here, COURSE_WORK=str(tmp_path / "work"))
    course.work = tmp_path / "work"
    return course


@pytest.fixture(scope="module")
def not_written(tmp_path_factory):
    """{id: the verdict on it, where nothing is written}."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_WORK", str(tmp_path_factory.mktemp("work")))
        return {id: check(id) for id in exercises()}


def write(course, text, id="0.1"):
    file = course.work / exercises()[id].file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_check_json_of_a_right_answer():
    done = commands.course("check", "0.1", "--file", str(SOLUTION), "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert list(verdict) == [*("exercise", "passed", "score", "max_score", "duration_s", "file", "tests")]
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
    full = course("check", "0.1", "--full").stdout
    assert "FAILED" in full and "(0 of 1 points)" in full


def wrong_verdict(mistake, **facts):
    return verdict_of((mistake, facts), None)


def verdict_of(*findings):
    """With a test for each (mistake, facts); None is passed."""
    tests = []
    for name, finding in zip("abc", findings, strict=False):
        status, score = ("failed", 0) if finding else ("passed", 1)
        result = verdict.TestResult(f"test_{name}", f"does {name}", status, score, 1)
        if finding:
            result.mistake, result.facts = finding
        tests.append(result)
    return Verdict("0.1", "Count tokens", "a.py", "tests/a.py", 0.1, tests)


@pytest.mark.parametrize("width", range(60, 111, 5))
def test_a_command_stays_in_one_line(width):
    for word in ("x" * n for n in range(1, 30)):
        lines = wrong_verdict(f"{'word ' * 15}{word} course reset 1.1 {'word ' * 40}").lines(width)
        assert sum("course reset 1.1" in line for line in lines) == 1
        assert max(map(len, lines)) <= width and len(lines) <= 12


def long_verdict(words=60):
    names = ("sent", "expected", "got", "printed", "where")
    facts = {name: f"{name}-begins " + "word " * words for name in names}
    long = wrong_verdict("mistake-begins " + "word " * words, **facts)
    long.next_hint = "hint-begins " + "word " * 100
    return long


@pytest.mark.parametrize("width", [80, 110, 200])
def test_what_happened_comes_first_and_the_hint_is_cut_first(width):
    lines = long_verdict().lines(width)
    assert len(lines) <= 12 and max(map(len, lines)) <= width
    for name in ("mistake", "sent", "expected", "got", "printed", "where"):
        assert sum(f"{name}-begins" in line for line in lines) == 1, lines
    assert "  test      tests/a.py::test_a" in lines
    shorter = long_verdict(words=3).lines(width)
    assert len(shorter) <= 12 and any("hint-begins" in line for line in shorter)


@pytest.mark.parametrize("width", range(40, 111, 5))
def test_of_a_word_longer_than_a_line_the_beginning_is_shown(width):
    facts = {name: f"{name}-{'x' * 180}" for name in ("sent", "expected", "got", "where")}
    lines = wrong_verdict("mistake " * 40, **facts).lines(width)
    for name in facts:
        assert sum(f"{name}-xxx" in line for line in lines) == 1, lines
    assert max(map(len, lines)) <= width and len(lines) <= 12


def test_a_finding_crosses_to_the_verdict_as_data(tmp_path):
    file = tmp_path / "answer.py"
    file.write_text("def count_tokens(tokenizer, text):\n    raise OSError\n", encoding="utf-8")
    wrong = check("0.1", file).first_wrong
    assert (wrong.kind, wrong.mistake) == ("mistake", "count_tokens raised OSError")
    assert wrong.facts == {
        "sent": "count_tokens(tokenizer, 'What is a token?')",
        "expected": 5,
        "got": "OSError, an error without a message",
        "where": "line 2, in count_tokens: raise OSError",
    }
    assert wrong.message.splitlines()[2] == "  expected  5"


def test_a_notebook_wraps_a_verdict_itself():
    shown = wrong_verdict(f"{'word ' * 40}<b> course reset 1.1", got=1)._repr_html_()
    call = "<span style='white-space:nowrap'>course.reset(&quot;1.1&quot;)</span>"
    assert "word " * 40 + f"&lt;b&gt; {call}" in shown
    assert ">got       1</div>" in shown and ">test      tests/a.py::test_a</div>" in shown


def test_a_notebook_shows_what_is_wrong_in_each_test():
    several = verdict_of(("first", {"got": 1}), None, ("<b> second", {"got": 2}))
    in_terminal, in_notebook = str(several), several._repr_html_()
    assert "and 1 more; --full shows them all" in in_terminal
    assert "--full" not in in_notebook and "and 1 more; see &quot;All tests&quot;" in in_notebook
    table = in_notebook.partition("<table>")[2]
    assert "does a<div>first</div>" in table and "does c<div>&lt;b&gt; second</div>" in table
    assert "does b</td>" in table and "got" not in table


def test_several_exercises_at_once(course):
    write(course, SOLUTION.read_text(encoding="utf-8"))
    done = course("check", "0.1", "1.1")
    assert done.returncode == 1 and "1 of 2 exercises passed" in done.stdout
    verdicts = json.loads(course("check", "0.1", "1.1", "--json").stdout)
    assert [(v["exercise"], v["passed"]) for v in verdicts] == [("0.1", True), ("1.1", False)]


def test_without_an_exercise_it_is_the_last_one_again(course):
    write(course, "x = 1\n", "1.1")
    course("check", "1.1")
    assert course("check").stdout.startswith("1.1 ")
    assert json.loads(course("check", "--json").stdout)["exercise"] == "1.1"
    assert course("hint").stdout.replace("`", "").startswith("Hint 1 of")
    assert course("hint", "1.1").stdout.startswith("Hint 2 of")


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "course reset 0.1"),
        (stubs.stub("0.1"), 'raise NotImplementedError("0.1")'),
    ],
)
def test_what_is_not_written_is_said_first_and_is_no_failure(course, text, said):
    if text is not None:
        write(course, text)
    first, message, *_ = course("check", "0.1").stdout.splitlines()
    assert first == "0.1 Count tokens: not written yet, 0 of 3 points"
    shown = course("check", "0.1", "--full").stdout + course("check", "0.1").stdout
    assert said in shown and "FAILED" not in shown and "hint" not in shown


@pytest.mark.parametrize("text", ["def count_tokens(:\n", "1 / 0\n", "x = 1\n"])
def test_no_hint_for_a_file_that_does_not_load(course, text):
    write(course, text)
    shown = course("check", "0.1").stdout
    assert "not passed yet" in shown and "hint" not in shown


def test_a_verdict_shows_the_hint_of_the_test_that_fails(course):
    hint = exercises()["0.1"].hints[1]
    assert exercises()["0.1"].tests[0].hint == 2
    write(course, "def count_tokens(tokenizer, text):\n    return len(text)\n")
    assert f"hint      {hint[:40]}" in course("check", "0.1").stdout
    # shown is not asked for
    for number in (2, 3, 1):
        said = course("hint", "0.1").stdout
        assert said.startswith(f"Hint {number} of") and ("You have seen all" in said) == (number == 1)
    assert course("hint", "0.1").stdout.startswith("Hint 2 of")


def test_the_hint_is_the_one_for_the_test_that_failed_last(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    the_exercise = exercises()["1.4"]
    the_exercise.work_file.parent.mkdir(parents=True)
    the_exercise.work_file.write_text("def ask(): ...", encoding="utf-8")

    def fail(number):
        results = [
            verdict.TestResult(test.id, test.title, "failed" if n == number else "passed", 0, 1, "wrong")
            for n, test in enumerate(the_exercise.tests)
        ]
        monkeypatch.setattr(grading, "check", lambda *_: Verdict("1.4", "", "a.py", "tests/a.py", 0.1, results))
        desk.check(the_exercise)

    def hint():
        return int(desk.hint(the_exercise).split()[1])

    tests = [test.hint for test in the_exercise.tests]
    fail(tests.index(3))
    assert hint() == 3 and hint() == 4
    fail(tests.index(2))
    assert desk._left(the_exercise) == [1, 2, 5] and hint() == 2 and hint() == 5
    fail(tests.index(5))
    with pytest.raises(desk.Refused):
        desk.solution(the_exercise, False, lambda *_, **__: "")
    assert hint() == 1 and hint() == 5
    assert desk.solution(the_exercise, False, lambda *_, **__: "")
    fail(tests.index(None))
    assert hint() == 5


def hint_in_a_verdict(monkeypatch, tmp_path, rung):
    """Of a wrong answer to 0.1, after 0, 1, 2 and 3 hints were asked for."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    the_exercise = exercises()["0.1"]
    first = replace(the_exercise.tests[0], hint=rung)
    the_exercise = replace(the_exercise, tests=(first, *the_exercise.tests[1:]))
    file = the_exercise.work_file
    file.parent.mkdir(parents=True)
    file.write_text("def count_tokens(tokenizer, text):\n    return len(text)\n", encoding="utf-8")
    for _ in range(len(the_exercise.hints)):
        yield desk.check(the_exercise).next_hint
        desk.hint(the_exercise)
    yield desk.check(the_exercise).next_hint


def test_the_last_hint_is_for_those_who_ask(monkeypatch, tmp_path):
    last = exercises()["0.1"].hints[-1]
    assert list(hint_in_a_verdict(monkeypatch, tmp_path, len(exercises()["0.1"].hints))) == [
        "course hint 0.1 shows the last hint, which is about exactly this and gives nearly the whole answer",
        *[last] * 3,
    ]


def test_where_no_hint_fits_none_is_shown(monkeypatch, tmp_path):
    *others, last = hint_in_a_verdict(monkeypatch, tmp_path, None)
    assert others == ["course hint 0.1 gives the next hint"] * 3
    assert last == "you have seen all hints; to compare with the reference answer: course solution 0.1"


def test_what_mattered_is_said_after_a_pass_and_never_before(course):
    said = exercises()["0.1"].mattered
    answer = "def count_tokens(tokenizer, text):\n    return len({}tokenizer(text)['input_ids'])\n"
    for code, passed in ((answer.format("text or "), False), (answer.format(""), True)):
        file = write(course, code)
        for more in ([], ["--full"], ["--file", str(file)]):
            shown = " ".join(course("check", "0.1", *more).stdout.split())
            assert ("not passed yet" not in shown) == passed == (said in shown)


@pytest.mark.parametrize("width", [60, 110])
@pytest.mark.parametrize("each", exercises().values(), ids=lambda each: each.id)
def test_what_mattered_is_shown_whole(each, width):
    passed = verdict_of(None)
    passed.mattered, passed.what_next = each.mattered, "next: 1.1"
    lines = passed.lines(width)
    assert " ".join(line.strip() for line in lines[1:-1]) == each.mattered
    assert html.escape(each.mattered) in passed._repr_html_()


def test_next_is_forward_and_progress_names_what_was_skipped(course):
    for id in ("1.1", "1.4", "0.1"):
        write(course, exercises()[id].solution_file.read_text(encoding="utf-8"), id)
    for id, following in {"1.1": "1.2", "1.4": "1.5"}.items():
        said = course("check", id).stdout.splitlines()[-1]
        title = exercises()[following].title
        optional = " (optional)" if exercises()[following].optional else ""
        assert said == f"next: {following} {title}{optional}"
    said = course("progress").stdout
    assert "Next: 1.5" in said and "Still to do before that: 0.1, 1.2, 1.3." in said


def test_what_is_optional_is_not_next_while_what_is_not_is_left_out(monkeypatch):
    standing = [{"exercise": each, "score": 0, "max_score": 1, "state": "passed"} for each in exercises().values()]
    monkeypatch.setattr(records, "standing", lambda: standing)
    for row in standing:
        row["state"] = "not started" if row["exercise"].id in ("0.1", "4.4", "4.5") else "passed"
    assert "still to do: 0.1, 4.5 (optional), 4.4 (optional)." in desk.summary()
    assert desk._what_next(exercises()["4.3"]) == "still to do: 0.1, 4.5 (optional), 4.4 (optional)"
    standing[0]["state"] = "passed"
    assert desk._what_next(exercises()["4.1"]).startswith("next: 4.5 ")


def test_after_the_last_exercise_what_was_skipped_is_still_open(monkeypatch, tmp_path):
    first, *_, last = [{"exercise": each, "score": 0, "max_score": 1} for each in exercises().values()]
    monkeypatch.setattr(records, "standing", lambda: [first, last])
    last["state"] = "passed"
    for state, said in {
        "not started": "Everything you have checked has passed; still to do: 0.1.",
        "not checked": "Everything you have checked has passed; still to do: 0.1.",
        "not passed yet": "points. Still to do: 0.1.",
        "passed": "points. All done.",
    }.items():
        first["state"] = state
        assert desk.summary().endswith(said)
    first["state"] = "not started"
    passed = verdict_of(None)
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    monkeypatch.setattr(grading, "check", lambda *_: passed)
    assert desk.check(last["exercise"]).what_next == "still to do: 0.1"


def test_check_of_everything_with_nothing_written(course, not_written, monkeypatch):
    monkeypatch.setattr(grading, "check", lambda id, *_: copy.deepcopy(not_written[id]))
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
        (["check"], "Which exercise? For example: course check 0.1"),
        (["hint"], "Which exercise? For example: course hint 0.1"),
        (["check", "0.1", "9.9"], "There is no exercise 9.9"),
        (["check", "0.1", "--all"], "Use one of these"),
        (["check", "0.1", "1.1", "--file", str(SOLUTION)], "--file works with one exercise only"),
        (["check", "--stage", "77"], "There is no stage 77"),
        (["check", "0.1", "--file", "nowhere.py"], "There is no file nowhere.py"),
        (["check", "--all", "--file", str(SOLUTION)], "--file works with one exercise only"),
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
        said = course("hint", "0.1").stdout
        assert f"Hint {rung} of {len(hints)}: {hint.split('`')[0]}" in said
        over = "You have seen all hints. You can now run course solution 0.1." in said
        assert over == (hint == hints[-1])
    assert f"Hint {len(hints)} of {len(hints)}" in course("hint", "0.1").stdout
    assert "    return len(tokenizer(text" in course("solution", "0.1").stdout


def test_the_solution_is_a_diff_of_the_code(course):
    right = SOLUTION.read_text(encoding="utf-8")
    write(course, "#| exercise 0.1\n" + right.replace('"""Count', '"""My count'))
    assert course("check", "0.1").returncode == 0
    done = course("solution", "0.1")
    assert done.returncode == 0 and "your answer is the same as solutions/" in done.stdout
    bare = "def count_tokens(tokenizer, text):\n    return len(tokenizer.encode(text))\n"
    write(course, bare)
    lines = course("solution", "0.1").stdout.splitlines()
    changed = [line.strip() for line in lines if line[:1] in "+-" and line[1:2] == " "]
    assert changed == [
        "-    return len(tokenizer.encode(text))",
        '+    return len(tokenizer(text, add_special_tokens=False)["input_ids"])',
    ]


def test_an_answer_that_shares_little_is_shown_the_whole_reference(course):
    write(course, "def other(things):\n    for thing in things:\n        print(thing)\n")
    shown = course("solution", "0.1", "--anyway").stdout
    assert [line.rstrip() for line in shown.rstrip().splitlines()] == (
        SOLUTION.read_text(encoding="utf-8").rstrip().splitlines()
    )


def test_reset_keeps_what_was_there(course):
    file = write(course, "my = 'answer'\n")
    done = course("reset", "0.1")
    assert file.read_text(encoding="utf-8") == stubs.stub("0.1")
    kept = [line for line in done.stdout.splitlines() if "kept" in line]
    kept = [line.split(" in ")[1].rstrip(".") for line in kept]
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
    assert "changed since the last check" in course("progress").stdout


def test_reports(course, not_written, monkeypatch, tmp_path):
    verdicts = {**not_written, "0.1": check("0.1", SOLUTION)}
    monkeypatch.setattr(grading, "check", lambda id, *_: copy.deepcopy(verdicts[id]))
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
