"""The desk: what a learner can ask for, and the answers. `course.cli` and `course.notebook` are
its two faces, and only print.

A face says how a command is typed there: `typed("hint", "1.3")` is "course hint 1.3" in a terminal.
"""

import contextlib
import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from course import answers, grading, records, stubs
from course.difference import difference
from course.grading import Verdict
from course.grading.elsewhere import NoServer
from course.grading.forkserver import NoForkServer, is_warm
from course.manifest import Exercise, UnknownExercise, exercises, find, shown
from course.words import words

SHARED = 0.3
"""The difference of two files that have less in common is harder to read than the reference alone."""


class Refused(Exception):
    """A request cannot be fulfilled. The message says why, and what to do."""

    def _render_traceback_(self):
        # what a notebook shows: the message, not the way to it
        return [str(self)]


def chosen(id: str | None, command: str, typed: Callable[..., str]) -> Exercise:
    """The exercise of that id; without one, that of the last check.

    Raises:
        Refused: there is no such exercise, or none was checked.
    """
    id = id or records.last_checked()
    if id is None:
        raise Refused(words("Which exercise? For example: {command}", command=typed(command, next(iter(exercises())))))
    try:
        return find(id)
    except UnknownExercise as error:
        raise Refused(str(error)) from None


def of_stage(stage: int | None) -> list[Exercise]:
    """The exercises of a stage; at None, all.

    Raises:
        Refused: there is no such stage.
    """
    found = [each for each in exercises().values() if stage is None or each.stage == stage]
    if not found:
        stages = sorted({each.stage for each in exercises().values()})
        known = ", ".join(map(str, stages))
        raise Refused(words("There is no stage {stage}. The stages are: {known}.", stage=stage, known=known))
    return found


def check(exercise: Exercise, file=None, show: Callable[[str], None] = lambda line: None) -> Verdict:
    """Checks the answer, keeps it and its verdict, and adds the next hint, or what mattered, and what to do next.

    Args:
        exercise: what to check.
        file: the answer; by default the learner's own, which is then kept.
        show: called with a line that says which test is running, whenever that changes.

    Raises:
        Refused: the grader did not start, or Ctrl-C was pressed.
    """
    own = file is None or Path(file).resolve() == exercise.work_file
    not_kept = ""
    if own:
        try:
            records.keep(exercise)
        except records.CannotKeep as problem:
            not_kept = str(problem)
    verdict = _graded(exercise, show, lambda on_result: grading.check(exercise.id, file, on_result))
    if own and verdict.counted and not not_kept:
        try:
            records.note(exercise, verdict)
        except records.CannotKeep as problem:
            not_kept = str(problem)
    if verdict.passed:
        verdict.mattered = exercise.mattered
    if not_kept:
        verdict.what_next = words("This verdict was not saved. {why}", why=not_kept)
    elif verdict.passed and own:
        verdict.what_next = _what_next(exercise)
    elif not verdict.passed and not verdict.not_written and not verdict.never_ran:
        verdict.next_hint = _hint_in_a_verdict(exercise, verdict.failed)
    return verdict


def check_elsewhere(exercise: Exercise, url: str, show: Callable[[str], None] = lambda line: None) -> Verdict:
    """Checks a server that runs already, by those of the exercise's tests that need nothing but its address.

    Nothing is kept, and nothing counted.

    Raises:
        Refused: there are no such tests, or no server answers there; and as `check`.
    """
    here = replace(exercise, tests=tuple(test for test in exercise.tests if test.elsewhere))
    if not here.tests:
        known = ", ".join(each.id for each in exercises().values() if any(test.elsewhere for test in each.tests))
        said = words(
            "{id} cannot be checked with --url: its tests need your file."
            " Exercises that can be checked this way: {known}.",
            id=exercise.id,
            known=known,
        )
        raise Refused(said)
    try:
        verdict = _graded(here, show, lambda on_result: grading.check_elsewhere(exercise.id, url, on_result))
    except NoServer as problem:
        start = words("To start your own server: course serve {stage}", stage=exercise.stage)
        raise Refused(f"{problem}\n{start}") from None
    left_out = len(exercise.tests) - len(here.tests)
    verdict.what_next = words(
        "{left_out} tests were not run, because they need your file. To run every test: course check {id}",
        left_out=left_out,
        id=exercise.id,
    )
    return verdict


def _graded(exercise, show, grade):
    """What `grade(on_result)` gives."""
    try:
        warming = words("checking {id} (the first check also warms up the grader) ...", id=exercise.id)
        show(_under_way(exercise) if is_warm() else warming)
        return grade(lambda ended: show(_under_way(exercise, ended)))
    except KeyboardInterrupt:
        raise Refused(words("Stopped.")) from None
    except NoForkServer as error:
        raise Refused(f"{error}\n{words('To see what is wrong: course doctor')}") from None


def hint(exercise: Exercise) -> str:
    """The hint that fits the test that failed last, unless it was seen: then the next one, from there upwards.

    When all have been seen it is the fitting one again, or the last.
    """
    most, seen = len(exercise.hints), records.hints_seen(exercise.id)
    fitting = _hint_for(exercise, records.failed_last(exercise.id))
    left = _left(exercise)
    if fitting in left or not left:
        number = fitting or most
    else:
        after = seen[-1] if seen else 0
        number = next((each for each in left if each > after), left[0])
    with _refusing():
        records.note_hint(exercise.id, number)
    text = words("Hint {number} of {most}: {hint}", number=number, most=most, hint=words(exercise.hints[number - 1]))
    if _left(exercise):
        return text
    seen_all = words("You have seen all hints. You can now run course solution {id}.", id=exercise.id)
    return f"{text}\n{seen_all}"


def solution(exercise: Exercise, anyway: bool, typed: Callable[..., str]) -> tuple[str, str]:
    """What leads from the learner's file to the reference, marks and style left out.

    Returns:
        (language, text): "diff" and the unified diff; "python" and the whole reference, where the two
        share little; or "text" and a sentence, where they differ in style only.

    Raises:
        Refused: it was neither passed nor were all hints seen, and `anyway` is False.
    """
    id = exercise.id
    if _left(exercise) and not (anyway or records.ever_passed(id)):
        hints = words(
            "You have not passed {id} yet, and there are hints left: {command}", id=id, command=typed("hint", id)
        )
        anyhow = words("To see the solution anyway: {command}", command=typed("solution", id, anyway=True))
        raise Refused(f"{hints}\n{anyhow}")
    mine, reference = exercise.work_file, exercise.solution_file
    own = mine.read_text(encoding="utf-8", errors="replace") if mine.is_file() else ""
    theirs = reference.read_text(encoding="utf-8")
    head = [f"--- {shown(mine)}", f"+++ {shown(reference)}"]
    try:
        shared, lines = difference(stubs.without_marks(own), stubs.without_marks(theirs))
    except (SyntaxError, ValueError):
        shared, lines = _difference_of_lines(own, stubs.without_marks(theirs))
    if shared < SHARED:
        return "python", stubs.without_marks(theirs)
    if not lines:
        return "text", words("Apart from style, your answer is the same as {file}.", file=shown(reference))
    return "diff", "\n".join([*head, *lines])


def reset(exercise: Exercise) -> str:
    """Puts the stub back into `work/`, and keeps what was there."""
    with _refusing():
        kept = records.write(exercise, stubs.stub(exercise.id))
    said = [words("{file} contains the stub again.", file=shown(exercise.work_file))]
    if kept:
        said.append(words("Your earlier version is kept in {file}.", file=shown(kept)))
    said.append(words("The cell in the notebook has not changed: if you run it, it overwrites the file."))
    return "\n".join(said)


def keep_cell(source: str) -> str | None:
    """Writes an exercise's cell to its file in `work/`; returns what the learner should know of it.

    What the file held before is kept in the history. An untouched stub never replaces an answer.
    """
    id = stubs.exercise_of(source)
    if id is None:
        if stubs.looks_like_an_exercise(source):
            return words(
                "This cell was run but not saved: the cell of an exercise begins with a line such as #| exercise 1.3"
            )
        return None
    if id not in exercises():
        return words("There is no exercise {id}, so this cell was run but not saved.", id=id)
    if answer_instead_of(source) is not None:
        return words(
            "This cell is still the stub, so your code in {file} was run instead. To start over: course reset {id}",
            file=shown(find(id).work_file),
            id=id,
        )
    text = source.rstrip() + "\n"
    file = find(id).work_file
    if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
        try:
            records.write(find(id), text)
        except records.CannotKeep as problem:
            return words("This cell was run but not saved. {problem}", problem=problem)
    return None


def answer_instead_of(source: str) -> str | None:
    """The learner's file, where it holds an answer and the cell is only its exercise's stub."""
    id = stubs.exercise_of(source)
    if id not in exercises() or not answers.is_stub(id, source) or not find(id).work_file.is_file():
        return None
    text = find(id).work_file.read_text(encoding="utf-8", errors="replace")
    return None if answers.is_stub(id, text) else text


def rows() -> list[tuple[str, str, str, str]]:
    """Id, title, state and points of every exercise."""
    found = []
    for row in records.standing():
        each = row["exercise"]
        found.append((each.id, _titled(each), words(row["state"]), f"{row['score']} / {row['max_score']}"))
    return found


def summary() -> str:
    """The points of all exercises, what comes next, and what was left out."""
    standing = records.standing()
    score, most = sum(row["score"] for row in standing), sum(row["max_score"] for row in standing)
    passed = [row["exercise"].id for row in standing if row["state"] == "passed"]
    following, left_out = _following(passed[-1] if passed else None)
    if following:
        said = [words("Next: {id} {title}.", id=following.id, title=_titled(following))]
        left_out = left_out[: left_out.index(following)]
        said += [words("Still to do before that: {listed}.", listed=_listed(left_out))] if left_out else []
    elif left_out:
        wrong = any(row["state"] in ("not passed yet", "changed since the last check") for row in standing)
        listed = _listed(left_out)
        if wrong:
            said = [words("Still to do: {listed}.", listed=listed)]
        else:
            said = [words("Everything you have checked has passed; still to do: {listed}.", listed=listed)]
    else:
        said = [words("All done.")]
    return " ".join([words("{score} of {most} points.", score=score, most=most), *said, *records.unread()])


@contextlib.contextmanager
def _refusing():
    try:
        yield
    except records.CannotKeep as problem:
        raise Refused(str(problem)) from None


def _following(after):
    """The first exercise after that one that is not passed, if there is one; and all that are not. One that
    this computer cannot check is none of them. Behind the last that is not optional, those left out come first."""
    ids = list(exercises())
    later = ids[ids.index(after) + 1 :] if after else ids
    not_passed = [row["exercise"] for row in records.standing() if row["state"] != "passed" and row["max_score"]]
    after_it = [each for each in not_passed if each.id in later]
    if all(each.optional for each in after_it) and not all(each.optional for each in not_passed):
        return None, not_passed
    return next(iter(after_it), None), not_passed


def _what_next(exercise):
    following, still_open = _following(exercise.id)
    if following:
        return words("next: {id} {title}", id=following.id, title=_titled(following))
    return words("still to do: {listed}", listed=_listed(still_open)) if still_open else ""


def _left(exercise):
    """The numbers of the hints, from 1, that have not been asked for."""
    seen = records.hints_seen(exercise.id)
    return [number for number in range(1, len(exercise.hints) + 1) if number not in seen]


def _hint_for(exercise, test_id):
    """The number of the hint that helps with that test, if there are both."""
    return next((test.hint for test in exercise.tests if test.id == test_id), None)


def _hint_in_a_verdict(exercise, failed):
    id, most, left = exercise.id, len(exercise.hints), _left(exercise)
    number = _hint_for(exercise, failed)
    # the last one is nearly the answer: only those who ask for it see it
    if number and (number < most or number not in left):
        return words(exercise.hints[number - 1])
    if not left:
        return words("you have seen all hints; to compare with the reference answer: course solution {id}", id=id)
    if number:
        return words(
            "course hint {id} shows the last hint, which is about exactly this and gives nearly the whole answer", id=id
        )
    return words("course hint {id} gives the next hint", id=id)


def _under_way(exercise, ended=""):
    """Which test a running check is at, when the one of the id `ended` has come to its end."""
    tests = exercise.tests
    number = next((n for n, test in enumerate(tests, 2) if test.id == ended), 1)
    if number > len(tests):
        return words("checking {id} ...", id=exercise.id)
    title = words(tests[number - 1].title)
    return words(
        "checking {id}: test {number} of {many}, {title} ...",
        id=exercise.id,
        number=number,
        many=len(tests),
        title=title,
    )


def _listed(some):
    return words(", ").join(words("{id} (optional)", id=each.id) if each.optional else each.id for each in some)


def _titled(exercise):
    title = words(exercise.title)
    return words("{title} (optional)", title=title) if exercise.optional else title


def _difference_of_lines(own, theirs):
    """As `difference` returns it, for an answer that is not Python."""
    files = own.splitlines(), theirs.splitlines()
    words = [[line.strip() for line in lines if line.strip()] for lines in files]
    shared = difflib.SequenceMatcher(None, *words, autojunk=False).ratio()
    return shared, list(difflib.unified_diff(*files, lineterm=""))[2:]
