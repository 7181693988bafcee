"""What a notebook needs: the hook that keeps exercise cells, and `check`, `hint` and the like.

An exercise cell is an ordinary cell that begins with `#| exercise 1.3`. It is watched by a
`pre_run_cell` hook and is no cell magic: a magic breaks on top-level `await`, and the hook also
keeps a cell that does not parse yet.
"""

import html
import os
import warnings
from pathlib import Path

from course import answers, desk, stubs
from course.grading import Verdict
from course.manifest import exercises, find
from course.words import words


def watch(shell) -> None:
    """Keeps every exercise cell that `shell` runs from now on, and those that it has run already."""
    if getattr(shell, "serving_qwen_is_watching", False):
        return
    shell.serving_qwen_is_watching = True
    speak_as_the_notebook()
    # tqdm would like a package for its progress bars that the course has no need of
    warnings.filterwarnings("ignore", "IProgress not found")
    answers.importable()
    latest = {}
    for source in shell.user_ns.get("In", []):
        if isinstance(source, str) and stubs.exercise_of(source):
            latest[stubs.exercise_of(source)] = source
    for source in latest.values():
        _keep_cell(source)
    shell.input_transformers_cleanup.append(_answer_instead_of_stub)
    shell.events.register("pre_run_cell", lambda info: _begin_cell(shell, info.raw_cell))
    shell.events.register("post_run_cell", lambda result: _end_cell(shell))
    shell.set_custom_exc((NotImplementedError,), _show_not_implemented)
    _warm_up()


def load_ipython_extension(shell) -> None:
    """`%load_ext course.notebook`, or `--ext course.notebook` in a kernel's command.

    `check` and the like are then there from the start, also in a kernel that was restarted.
    """
    watch(shell)
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        # JupyterLab writes it into every notebook that it opens, and git would see a change
        kernel.language_info = {**kernel.language_info, "version": "3"}
    commands = (check, hint, solution, reset, progress)
    shell.push({command.__name__: command for command in commands}, interactive=False)


def check(id: str | None = None) -> Verdict:
    """Checks your answer to an exercise, as `course check` does in a terminal.

    Without an id, it checks the exercise you checked last.
    """
    progress = _Progress()
    try:
        verdict = desk.check(desk.chosen(id, "check", _typed), None, progress.show)
    finally:
        progress.end()
    if verdict.not_written:
        # here the file is the cell, and `where` the line in it that is the stub's
        verdict.first_wrong.mistake = words(
            "{id} is not written yet."
            " Write your code in the cell of exercise {id}, run that cell, then check it again.",
            id=verdict.exercise,
        )
    return verdict


def hint(id: str | None = None) -> None:
    """Shows the hint for the test that failed last, or the next hint.

    Without an id, it is for the exercise you checked last.
    """
    print(desk.hint(desk.chosen(id, "hint", _typed)))


def solution(id: str, anyway: bool = False) -> None:
    """Shows how your answer differs from the reference answer, once you have passed or seen all hints."""
    print(desk.solution(desk.chosen(id, "solution", _typed), anyway, _typed)[1])


def reset(id: str) -> None:
    """Restores an exercise's stub in `work/`, and keeps a copy of your code."""
    print(desk.reset(desk.chosen(id, "reset", _typed)))


def progress() -> "Standing":
    """Shows all exercises, their points, and what to do next."""
    return Standing()


class Standing:
    """Every exercise as a table."""

    def _repr_html_(self) -> str:
        cells = "<td>{}</td><td style='text-align:left'>{}</td><td style='text-align:left'>{}</td>"
        rows = "".join(f"<tr>{cells.format(*map(html.escape, row[:3]))}<td>{row[3]}</td></tr>" for row in desk.rows())
        head = cells.replace("td", "th").format("", words("exercise"), words("status")) + f"<th>{words('points')}</th>"
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table><p>{html.escape(desk.summary())}</p>"

    def __repr__(self) -> str:
        lines = [f"{id}  {title:<40} {state:<24} {points:>7}" for id, title, state, points in desk.rows()]
        return "\n".join([*lines, desk.summary()])


class _Progress:
    """One line below a running check: which test it is at. It goes when the verdict comes."""

    def __init__(self):
        self.handle = None

    def show(self, line):
        # a plain IPython shell cannot take back what it has shown
        if getattr(_shell(), "kernel", None) is None:
            return
        if self.handle is None:
            from IPython.display import DisplayHandle

            self.handle = DisplayHandle()
            self.handle.display({"text/plain": line}, raw=True)
        else:
            self.handle.update({"text/plain": line}, raw=True)

    def end(self):
        if self.handle is not None:
            self.handle.update({}, raw=True)


def _shell():
    from IPython import get_ipython

    return get_ipython()


def _typed(command, id, anyway=False):
    return f'{command}("{id}"{", anyway=True" * anyway})'


def _show_not_implemented(shell, etype, error, traceback, tb_offset=None):
    if id := answers.raised_by_stub(error):
        # the way through the stub says no more than this
        said = words(
            "{id} is not written yet."
            " Write your code in the cell of exercise {id}, run that cell, then run this one again.",
            id=id,
        )
        error._render_traceback_ = lambda: [f"NotImplementedError: {said}"]
    shell.showtraceback((etype, error, traceback), tb_offset=tb_offset)


def _begin_cell(shell, source):
    _keep_cell(source)
    if stubs.exercise_of(source) in exercises():
        # the cell is a file's text: what stands there under `if __name__ == "__main__":` is for
        # those who run the file
        shell.user_ns["__name__"] = find(stubs.exercise_of(source)).work_file.stem


def _end_cell(shell):
    shell.user_ns["__name__"] = "__main__"


def _keep_cell(source):
    message = desk.keep_cell(source)
    if message:
        print(message)
    if (id := stubs.exercise_of(source)) in exercises():
        # a later exercise's cell may import this one, and then as it is now
        answers.forget(id)


def _answer_instead_of_stub(lines):
    """An input transformation: the answer that is written already runs in place of its stub."""
    answer = desk.answer_instead_of("".join(lines))
    return lines if answer is None else answer.splitlines(keepends=True)


def speak_as_the_notebook():
    """In Chinese in a notebook of `notebooks/zh/`. Jupyter says where it is, and works in its folder."""
    places = [Path(os.environ.get("JPY_SESSION_NAME", "")).absolute().parent, Path.cwd()]
    if any(place.parts[-2:] == ("notebooks", "zh") for place in places):
        os.environ.setdefault("COURSE_LANG", "zh")


def _warm_up():
    if hasattr(os, "fork"):
        from course.grading import forkserver

        forkserver.start()
