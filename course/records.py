"""What is kept of a learner's work: every checked version, every verdict, the hints seen.

All of it lies in `work/.history/` as plain files.
"""

import ast
import csv
import difflib
import hashlib
import io
import json
import time
from pathlib import Path
from xml.etree import ElementTree

from course import answers, stubs
from course.grading import Verdict, check
from course.manifest import Exercise, exercises, find, shown, work_folder

SHARED = 0.3
"""A diff of two files that have less in common is harder to read than the reference alone."""


def checked(id: str, file=None, on_result=None) -> Verdict:
    """Checks the answer, keeps it and its verdict, and adds the next hint and what to do next."""
    the_exercise = find(id)
    own = file is None or Path(file).resolve() == the_exercise.work_file
    if own:
        keep(the_exercise)
    verdict = check(id, file, on_result)
    if own:
        _note(the_exercise, verdict)
    if verdict.passed and own:
        following, still_open = next_exercise(after=id), not_passed()
        if following:
            verdict.what_next = f"next: {following.id} {titled(following)}"
        elif still_open:
            verdict.what_next = f"still open: {_listed(still_open)}"
    elif not verdict.passed and not verdict.not_written and not verdict.never_ran:
        verdict.next_hint = _hint_in_a_verdict(the_exercise, verdict.first_wrong)
    return verdict


def _hint_in_a_verdict(the_exercise, wrong):
    id, most, seen = the_exercise.id, len(the_exercise.hints), hints_seen(the_exercise.id)
    rung = the_exercise.test(wrong.id).hint if wrong.status != "not_run" else None
    # the last one is nearly the answer: only those who ask for it see it
    if rung and (rung < most or seen == most):
        return the_exercise.hints[rung - 1]
    if seen == most:
        return f"you have seen all hints; to see the difference: course solution {id}"
    if rung and seen == most - 1:
        return f"course hint {id} shows the last hint"
    if rung:
        return f"the last hint, number {most}, is about this; course hint {id} gives number {seen + 1}"
    return f"course hint {id} gives the next hint"


def keep(the_exercise: Exercise) -> Path | None:
    """Copies the learner's file into the history, unless that version is there or nothing is."""
    file = the_exercise.work_file
    if not file.is_file():
        return None
    source = file.read_bytes()
    digest = hashlib.sha256(source).hexdigest()[:10]
    folder = _history() / the_exercise.id
    folder.mkdir(parents=True, exist_ok=True)
    known = next(folder.glob(f"*-{digest}.py"), None)
    if known:
        return known
    copy = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}.py"
    copy.write_bytes(source)
    return copy


def save_cell(id: str, source: str) -> str | None:
    """Writes an exercise cell to its file in `work/`; returns what the learner should know of it.

    What the file held before is kept in the history. An untouched stub never replaces an answer.
    """
    the_exercise = find(id)
    file = the_exercise.work_file
    text = source.rstrip() + "\n"
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    if before == text:
        return None
    if answer_instead_of(id, source) is not None:
        return (
            f"This cell is still the stub, so your code in {shown(file)} was run in its place."
            f" To start anew: course reset {id}"
        )
    keep(the_exercise)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return None


def answer_instead_of(id: str, source: str) -> str | None:
    """The learner's file, where it holds an answer and `source` is only the exercise's stub."""
    file = find(id).work_file
    if not answers.is_stub(id, source) or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    return None if answers.is_stub(id, text) else text


def reset(id: str) -> Path | None:
    """Puts the stub back; returns where the version before is kept, if there was one."""
    the_exercise = find(id)
    kept = keep(the_exercise)
    the_exercise.work_file.parent.mkdir(parents=True, exist_ok=True)
    the_exercise.work_file.write_text(stubs.stub(id), encoding="utf-8")
    return kept


def hints_seen(id: str) -> int:
    return _hints().get(id, 0)


def next_hint(id: str) -> str:
    """The next rung of the ladder; the last one again when there is no more."""
    the_exercise = find(id)
    seen = _hints()
    rung = min(seen.get(id, 0) + 1, len(the_exercise.hints))
    seen[id] = rung
    path = _history() / "hints.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(seen), encoding="utf-8")
    most = len(the_exercise.hints)
    text = f"Hint {rung} of {most}: {the_exercise.hints[rung - 1]}"
    return text if rung < most else f"{text}\nThat was the last; course solution {id} is open now."


def may_see_solution(id: str) -> bool:
    """After passing, or after the last hint."""
    passed = any(each["passed"] for each in _verdicts() if each["exercise"] == id)
    return passed or hints_seen(id) >= len(find(id).hints)


def difference(id: str) -> tuple[str, str]:
    """What leads from the learner's file to the reference, docstrings and the marker left out.

    Returns:
        (language, text): "diff" and the unified diff, "" if the code is the same; or "python" and
        the whole reference, where the two share little.
    """
    the_exercise = find(id)
    mine, reference = the_exercise.work_file, the_exercise.solution_file
    own = mine.read_text(encoding="utf-8", errors="replace") if mine.is_file() else ""
    theirs = reference.read_text(encoding="utf-8")
    files = [_code_lines(own), _code_lines(theirs)]
    words = [[line.strip() for line in lines if line.strip()] for lines in files]
    if difflib.SequenceMatcher(None, *words, autojunk=False).ratio() < SHARED:
        return "python", theirs
    lines = difflib.unified_diff(*files, shown(mine), shown(reference), lineterm="")
    # without the docstrings the lines' numbers would be wrong
    return "diff", "\n".join("@@" if line.startswith("@@") else line for line in lines)


def _code_lines(source):
    lines = stubs.without_marks(source).splitlines()
    try:
        tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError):
        return lines
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
                first, last = node.body[0].lineno, node.body[0].end_lineno
                lines[first - 1 : last] = [None] * (last - first + 1)
    found = [line for line in lines if line is not None]
    while found and not found[0].strip():
        del found[0]
    return found


def standing() -> list[dict]:
    """For each exercise the verdict on the file as it is now, or what is missing for one."""
    found = []
    last = {each["exercise"]: each for each in _verdicts()}
    for the_exercise in exercises().values():
        file = the_exercise.work_file
        verdict = last.get(the_exercise.id)
        row = {"exercise": the_exercise, "score": 0, "state": "not started"}
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if answers.is_stub(the_exercise.id, text):
                row["state"] = "not started"
            elif verdict is None:
                row["state"] = "not checked"
            elif verdict["sha256"] != _sha256(file):
                row["state"] = "changed since its check"
            else:
                row["state"] = "passed" if verdict["passed"] else "not passed yet"
                row["score"] = verdict["score"]
        found.append(row)
    return found


def next_exercise(after: str | None = None) -> Exercise | None:
    """The first exercise of the course, or the first after that one, that is not passed."""
    ids = list(exercises())
    later = ids[ids.index(after) + 1 :] if after else ids
    return next((each for each in not_passed() if each.id in later), None)


def not_passed() -> list[Exercise]:
    return [row["exercise"] for row in standing() if row["state"] != "passed"]


def summary() -> str:
    """The points of all exercises, what comes next, and what was left out."""
    rows = standing()
    score, most = sum(row["score"] for row in rows), sum(row["exercise"].max_score for row in rows)
    passed = [row["exercise"].id for row in rows if row["state"] == "passed"]
    following = next_exercise(after=passed[-1] if passed else None)
    left_out = not_passed()
    if following:
        what = f"Next: {following.id} {titled(following)}."
        left_out = left_out[: left_out.index(following)]
        what += f" Still open before it: {_listed(left_out)}." if left_out else ""
    elif left_out:
        wrong = any(row["state"] in ("not passed yet", "changed since its check") for row in rows)
        what = "Still" if wrong else "All that you have checked is passed; still"
        what += f" open: {_listed(left_out)}."
    else:
        what = "All done."
    return f"{score} of {most} points. {what}"


def _listed(some):
    return ", ".join(each.id + (" (optional)" if each.optional else "") for each in some)


def titled(the_exercise: Exercise) -> str:
    return the_exercise.title + (" (optional)" if the_exercise.optional else "")


def under_way(the_exercise: Exercise, ended: str = "") -> str:
    """Which test a running check is at, when the one of the id `ended` has come to its end."""
    tests = the_exercise.tests
    number = next((n for n, test in enumerate(tests, 2) if test.id == ended), 1)
    if number > len(tests):
        return f"checking {the_exercise.id} ..."
    at = f"test {number} of {len(tests)}, {tests[number - 1].title}"
    return f"checking {the_exercise.id}: {at} ..."


def last_checked() -> str | None:
    """The exercise of the last check, if there was one."""
    verdicts = _verdicts()
    return verdicts[-1]["exercise"] if verdicts else None


def _note(the_exercise, verdict):
    file = the_exercise.work_file
    if not file.is_file():
        return
    line = {
        "exercise": the_exercise.id,
        "passed": verdict.passed,
        "score": verdict.score,
        "max_score": verdict.max_score,
        "sha256": _sha256(file),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path = _history() / "verdicts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def _verdicts():
    path = _history() / "verdicts.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _hints():
    path = _history() / "hints.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _history():
    return work_folder() / ".history"


def report(verdicts: list[Verdict], format: str) -> str:
    """The verdicts as json, junit (XML), gradescope (results.json) or csv."""
    return {"json": _json, "junit": _junit, "gradescope": _gradescope, "csv": _csv}[format](verdicts)


def _json(verdicts):
    data = {
        "score": sum(verdict.score for verdict in verdicts),
        "max_score": sum(verdict.max_score for verdict in verdicts),
        "exercises": [verdict.as_json() for verdict in verdicts],
    }
    return json.dumps(data, ensure_ascii=False, indent=2)


def _junit(verdicts):
    root = ElementTree.Element("testsuites")
    for verdict in verdicts:
        counts = [test.status for test in verdict.tests]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"{verdict.exercise} {verdict.title}",
            tests=str(len(counts)),
            failures=str(counts.count("failed") + counts.count("timeout")),
            errors=str(counts.count("not_run")),
            time=f"{verdict.duration_s:.3f}",
        )
        for test in verdict.tests:
            case = ElementTree.SubElement(
                suite, "testcase", classname=verdict.tests_file, name=test.id
            )
            if test.status != "passed":
                # not run is an error, never a skip: a skipped test reads as green in most tools
                kind = "error" if test.status == "not_run" else "failure"
                first = test.message.splitlines()[0] if test.message else test.status
                ElementTree.SubElement(case, kind, message=first).text = test.message
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _gradescope(verdicts):
    tests = [
        {
            "number": verdict.exercise,
            "name": test.title,
            "score": test.score,
            "max_score": test.max_score,
            "status": "passed" if test.status == "passed" else "failed",
            "output": test.message,
        }
        for verdict in verdicts
        for test in verdict.tests
    ]
    return json.dumps({"tests": tests}, ensure_ascii=False, indent=2)


def _csv(verdicts):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["exercise", "title", "passed", "score", "max_score", "first_mistake"])
    for verdict in verdicts:
        wrong = verdict.first_wrong
        mistake = wrong.message.splitlines()[0] if wrong and wrong.message else ""
        row = [verdict.exercise, verdict.title, verdict.passed, verdict.score, verdict.max_score]
        writer.writerow([*row, mistake])
    return out.getvalue()
