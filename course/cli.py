"""The `course` command."""

import contextlib
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course.manifest import UnknownExercise, exercises, find, shown

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serving Qwen: work on an exercise, check it, serve what you built.",
)
Id = Annotated[str, typer.Argument(help="an exercise, such as 1.3", show_default=False)]


class Format(StrEnum):
    json = "json"
    junit = "junit"
    gradescope = "gradescope"
    csv = "csv"


@app.command()
def check(
    ids: Annotated[
        list[str] | None, typer.Argument(help="exercises, such as 1.3; none: the last one again")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="check this file instead of yours")] = None,
    stage: Annotated[int | None, typer.Option(help="check all exercises of a stage")] = None,
    all: Annotated[bool, typer.Option("--all", help="check every exercise")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    full: Annotated[bool, typer.Option("--full", help="every test, raw tracebacks included")] = False,
):
    """Check an answer. The exit code is 0 only if all that was asked for passed."""
    if bool(ids) + (stage is not None) + all > 1:
        _stop("Say one of these: course check 1.3, course check --stage 1 or course check --all.")
    whole = all or stage is not None
    if whole:
        ids = [each.id for each in exercises().values() if all or each.stage == stage]
    else:
        ids = [_known(id) for id in ids or [_the_last("check")]]
    if not ids:
        _stop(f"There is no stage {stage}. There are: {', '.join(map(str, _stages()))}.")
    if file is not None and (whole or len(ids) > 1):
        _stop("--file goes with one exercise: course check 1.3 --file my_answer.py")
    if file is not None and not file.is_file():
        _stop(f"There is no file {file}.")
    verdicts = [_checked(each, file, quiet=as_json) for each in ids]
    if as_json:
        found = [verdict.as_json(full) for verdict in verdicts]
        one = len(found) == 1 and not whole
        print(json.dumps(found[0] if one else found, ensure_ascii=False, indent=2))
    else:
        for verdict in verdicts:
            _print_verdict(verdict, full)
        if whole or len(ids) > 1:
            passed = sum(verdict.passed for verdict in verdicts)
            score = sum(verdict.score for verdict in verdicts)
            most = sum(verdict.max_score for verdict in verdicts)
            print(f"{passed} of {len(verdicts)} exercises passed, {score} of {most} points.")
    raise typer.Exit(0 if all_passed(verdicts) else 1)


def all_passed(verdicts) -> bool:
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


@app.command()
def hint(
    id: Annotated[
        str | None, typer.Argument(help="an exercise; none: that of the last check")
    ] = None,
):
    """Show the next hint, one rung at a time."""
    from course import records

    print(records.next_hint(_known(id or _the_last("hint"))))


@app.command()
def solution(
    id: Id,
    anyway: Annotated[bool, typer.Option("--anyway", help="before you have passed")] = False,
):
    """Show the difference between your answer and the reference, docstrings left out."""
    from rich.console import Console
    from rich.syntax import Syntax

    from course import records

    the_exercise = find(_known(id))
    if not (anyway or records.may_see_solution(id)):
        _stop(
            f"You have not passed {id} yet and there are hints left: course hint {id}.\n"
            f"To look all the same: course solution {id} --anyway"
        )
    language, text = records.difference(id)
    if text:
        Console(soft_wrap=True).print(Syntax(text, language, background_color="default"))
    else:
        print(f"Apart from docstrings, your answer is {shown(the_exercise.solution_file)}.")


@app.command()
def reset(id: Id):
    """Put the stub back; what was there is kept."""
    from course import notebook

    notebook.reset(_known(id))


@app.command()
def progress():
    """Show every exercise, its points, and what comes next."""
    from rich.console import Console
    from rich.table import Table

    from course import records

    table = Table("", "exercise", "state", "points", box=None, pad_edge=False)
    for row in records.standing():
        each = row["exercise"]
        points = f"{row['score']} / {each.max_score}"
        style = {"passed": "green", "not passed yet": "yellow"}.get(row["state"], "")
        table.add_row(each.id, records.titled(each), row["state"], points, style=style)
    console = Console()
    console.print(table)
    console.print(records.summary(), highlight=False)


@app.command()
def report(
    format: Annotated[Format, typer.Option(help="json, junit, gradescope or csv")],
    output: Annotated[Path | None, typer.Option(help="a file; else standard output")] = None,
    stage: Annotated[int | None, typer.Option(help="only this stage")] = None,
):
    """Check every exercise and export the scores. The exit code is 0 when the report is complete."""
    from course import records

    ids = [each.id for each in exercises().values() if stage is None or each.stage == stage]
    if not ids:
        _stop(f"There is no stage {stage}. There are: {', '.join(map(str, _stages()))}.")
    text = records.report([_checked(each, None, quiet=False) for each in ids], format.value)
    if output:
        output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        print(f"Written to {output}.", file=sys.stderr)
    else:
        print(text.rstrip("\n"))


@app.command()
def serve(
    stage: Annotated[str, typer.Argument(help="a stage, such as 1, or an exercise of it")],
    solution: Annotated[bool, typer.Option("--solution", help="serve the reference")] = False,
    port: Annotated[int, typer.Option(help="where to listen")] = 8000,
    host: Annotated[str, typer.Option(help="other than 127.0.0.1 lets others in")] = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="a folder or a hub name")] = None,
):
    """Run your own server, put together from your answers. Ctrl-C stops it."""
    from course.lessons.server import run

    raise typer.Exit(run(stage, solution=solution, port=port, host=host, model=model))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context):
    """Open JupyterLab on the first notebook. Options of jupyter lab are handed on."""
    from course import lab as jupyter

    jupyter.main(context.args)


@app.command()
def doctor():
    """Look for what would get in your way, and say how to mend it."""
    from course import doctor as doctors

    findings = doctors.diagnose()
    doctors.show(findings)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def convert_qwen1(source: Path, target: Path):
    """Turn a legacy Qwen-1 checkpoint folder into a native Qwen2 one."""
    from course.qwen.convert_qwen1 import ConversionError, convert

    try:
        convert(source, target)
    except ConversionError as error:
        _stop(str(error))
    print(f"Written to {target}. Use it with: COURSE_MODEL={target}")


def _checked(id, file, quiet):
    from course import records
    from course.grading.forkserver import NoForkServer, is_warm

    the_exercise, on_result = find(id), None
    status = contextlib.nullcontext()
    if not quiet and sys.stderr.isatty():
        from rich.console import Console

        warming = "" if is_warm() else ", and warming up the grader, once"
        status = Console(stderr=True).status(f"checking {id}{warming} ...")

        def on_result(ended):
            status.update(records.under_way(the_exercise, ended))

    try:
        with status:
            return records.checked(id, file, on_result)
    except KeyboardInterrupt:
        _stop("Stopped.")
    except NoForkServer as error:
        _stop(f"{error}\nTo see what is wrong: course doctor")


def _print_verdict(verdict, full):
    from rich.console import Console
    from rich.text import Text

    from course.grading.verdict import WIDTH

    console = Console(soft_wrap=True)
    lines = verdict.full_lines() if full else verdict.lines(max(60, min(WIDTH, console.width)))
    style = "bold" if verdict.not_written else "bold yellow"
    console.print(Text(lines[0], style="bold green" if verdict.passed else style))
    for line in lines[1:]:
        console.print(Text(line))


def _known(id):
    try:
        return find(id).id
    except UnknownExercise as error:
        _stop(str(error))


def _the_last(command):
    from course import records

    id = records.last_checked()
    if id is None:
        _stop(f"Say which exercise: course {command} {next(iter(exercises()))}")
    return id


def _stages():
    return sorted({each.stage for each in exercises().values()})


def _stop(message):
    print(message, file=sys.stderr)
    raise typer.Exit(2)


def main():
    app()


if __name__ == "__main__":
    main()
