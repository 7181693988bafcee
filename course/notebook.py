"""What a notebook needs: the hook that keeps exercise cells, and `check`, `hint` and the like.

An exercise cell is an ordinary cell whose first line is `#| exercise 1.3`. It is watched by a
`pre_run_cell` hook and is no cell magic: a magic breaks on top-level `await`, and the hook also
keeps a cell that does not parse yet.
"""

import html
import os
import sys
import warnings

from course import records, stubs
from course.grading import Verdict
from course.grading.forkserver import NoForkServer
from course.manifest import UnknownExercise, exercise, exercises, shown


def watch(shell) -> None:
    """Keeps every exercise cell that `shell` runs from now on, and those that it has run already."""
    if getattr(shell, "serving_qwen_is_watching", False):
        return
    shell.serving_qwen_is_watching = True
    # tqdm would like a package for its progress bars that the course has no need of
    warnings.filterwarnings("ignore", "IProgress not found")
    latest = {}
    for source in shell.user_ns.get("In", []):
        if isinstance(source, str) and stubs.exercise_of(source):
            latest[stubs.exercise_of(source)] = source
    for source in latest.values():
        _keep_cell(source)
    shell.events.register("pre_run_cell", lambda info: _begin_cell(shell, info.raw_cell))
    shell.events.register("post_run_cell", lambda result: _end_cell(shell))
    shell.set_custom_exc((NotImplementedError,), _show_not_implemented)
    _warm_up()


def load_ipython_extension(shell) -> None:
    """`%load_ext course.notebook`, or `--ext course.notebook` in a kernel's command.

    `check` and the like are then there from the start, also in a kernel that was restarted.
    """
    watch(shell)
    commands = (check, hint, solution, reset, progress)
    shell.push({command.__name__: command for command in commands}, interactive=False)


def check(id: str) -> Verdict:
    """Checks your answer to an exercise, as `course check` does in a terminal."""
    return _friendly(records.checked, id)


def hint(id: str) -> None:
    """Shows the next hint for an exercise, one rung at a time."""
    the_exercise = _friendly(exercise, id)
    rung, text = records.next_hint(the_exercise.id)
    print(f"Hint {rung} of {len(the_exercise.hints)}: {text}")


def solution(id: str, anyway: bool = False) -> None:
    """Shows the difference between your answer and the reference, once you passed or saw all hints."""
    the_exercise = _friendly(exercise, id)
    if not (anyway or records.may_see_solution(id)):
        print(
            f"You have not passed {id} yet and there are hints left: hint({id!r})."
            f" To look all the same: solution({id!r}, anyway=True)"
        )
        return
    print(records.difference(id) or f"Your answer is {shown(the_exercise.solution_file)} itself.")


def reset(id: str) -> None:
    """Puts an exercise's stub back into `work/`, and keeps what was there."""
    the_exercise = _friendly(exercise, id)
    kept = records.reset(id)
    print(f"{shown(the_exercise.work_file)} is the stub again.")
    if kept:
        print(f"What was there is kept in {shown(kept)}.")
    print("A notebook's cell stays as it is: it writes the file again when you run it.")


def progress() -> "Progress":
    """Shows every exercise, its points, and what comes next."""
    return Progress()


class Progress:
    """The standing as a table."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{row['exercise'].id}</td>"
            f"<td style='text-align:left'>{html.escape(row['exercise'].title)}</td>"
            f"<td style='text-align:left'>{row['state']}</td>"
            f"<td>{row['score']} / {row['exercise'].max_score}</td></tr>"
            for row in records.standing()
        )
        return f"<table>{rows}</table><p>{html.escape(self._total())}</p>"

    def __repr__(self) -> str:
        lines = [
            f"{row['exercise'].id}  {row['exercise'].title:<40} {row['state']:<24}"
            f" {row['score']:>2} / {row['exercise'].max_score}"
            for row in records.standing()
        ]
        return "\n".join([*lines, self._total()])

    def _total(self) -> str:
        score = sum(row["score"] for row in records.standing())
        most = sum(each.max_score for each in exercises().values())
        following = records.next_exercise()
        what = f"Next: {following.id} {following.title}." if following else "All done."
        return f"{score} of {most} points. {what}"


class CourseError(Exception):
    """Something to be mended first; the message says what to do."""

    def _render_traceback_(self):
        return [f"{self}"]


def _friendly(call, *arguments):
    try:
        return call(*arguments)
    except (UnknownExercise, NoForkServer) as error:
        raise CourseError(str(error)) from None


def _show_not_implemented(shell, etype, error, traceback, tb_offset=None):
    id = str(error)
    if id in exercises():
        # the way through the stub says no more than this
        error._render_traceback_ = lambda: [
            f"NotImplementedError: {id} is not written yet."
            f" Write and run the cell of exercise {id}, then run this one again."
        ]
    shell.showtraceback((etype, error, traceback), tb_offset=tb_offset)


def _begin_cell(shell, source):
    _keep_cell(source)
    if stubs.exercise_of(source) in exercises():
        # the cell is a file's text: what stands there under `if __name__ == "__main__":` is for
        # those who run the file
        shell.user_ns["__name__"] = exercise(stubs.exercise_of(source)).work_file.stem


def _end_cell(shell):
    shell.user_ns["__name__"] = "__main__"


def _keep_cell(source):
    id = stubs.exercise_of(source)
    if id is None:
        return
    if id not in exercises():
        print(f"There is no exercise {id}: this cell was run, but not kept.")
        return
    message = records.save_cell(id, source)
    if message:
        print(message)
    _make_importable(exercise(id).work_file)


def _make_importable(file):
    # a later exercise's cell may import this one, and then as it is now
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        del sys.modules[file.stem]


def _warm_up():
    if hasattr(os, "fork"):
        from course.grading import forkserver

        forkserver.start()
