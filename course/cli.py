"""The `course` command."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course import desk
from course.report import WRITERS

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
    ids: Annotated[list[str] | None, typer.Argument(help="exercises, such as 1.3; none: the last one again")] = None,
    file: Annotated[Path | None, typer.Option(help="check this file instead of yours")] = None,
    stage: Annotated[int | None, typer.Option(help="check all exercises of a stage")] = None,
    all: Annotated[bool, typer.Option("--all", help="check every exercise")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    full: Annotated[bool, typer.Option("--full", help="every test, raw tracebacks included")] = False,
):
    """Check an answer. The exit code is 0 only if all that was asked for passed."""
    if bool(ids) + (stage is not None) + all > 1:
        raise desk.Refused("Say one of these: course check 1.3, course check --stage 1 or course check --all.")
    whole = all or stage is not None
    if whole:
        chosen = desk.of_stage(stage)
    else:
        chosen = [desk.chosen(id, "check", _typed) for id in ids or [None]]
    if file is not None and (whole or len(chosen) > 1):
        raise desk.Refused("--file goes with one exercise: course check 1.3 --file my_answer.py")
    if file is not None and not file.is_file():
        raise desk.Refused(f"There is no file {file}.")
    verdicts = [_checked(each, file, quiet=as_json) for each in chosen]
    if as_json:
        _write_utf_8()
        found = [verdict.as_json(full) for verdict in verdicts]
        one = len(found) == 1 and not whole
        print(json.dumps(found[0] if one else found, ensure_ascii=False, indent=2))
    else:
        for verdict in verdicts:
            _print_verdict(verdict, full)
        if whole or len(chosen) > 1:
            passed = sum(verdict.passed for verdict in verdicts)
            score = sum(verdict.score for verdict in verdicts)
            most = sum(verdict.max_score for verdict in verdicts)
            print(f"{passed} of {len(verdicts)} exercises passed, {score} of {most} points.")
    raise typer.Exit(0 if all_passed(verdicts) else 1)


def all_passed(verdicts) -> bool:
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


@app.command()
def hint(
    id: Annotated[str | None, typer.Argument(help="an exercise; none: that of the last check")] = None,
):
    """Show the hint for the test that failed last, or else the next one."""
    print(desk.hint(desk.chosen(id, "hint", _typed)))


@app.command()
def solution(
    id: Id,
    anyway: Annotated[bool, typer.Option("--anyway", help="before you have passed")] = False,
):
    """Show the difference between your answer and the reference, without what is only style."""
    from rich.console import Console
    from rich.syntax import Syntax

    language, text = desk.solution(desk.chosen(id, "solution", _typed), anyway, _typed)
    if language == "text":
        print(text)
    else:
        Console(soft_wrap=True).print(Syntax(text, language, background_color="default"))


@app.command()
def reset(id: Id):
    """Put the stub back; what was there is kept."""
    print(desk.reset(desk.chosen(id, "reset", _typed)))


@app.command()
def progress():
    """Show every exercise, its points, and what comes next."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "exercise", "state", "points", box=None, pad_edge=False)
    for row in desk.rows():
        style = {"passed": "green", "not passed yet": "yellow"}.get(row[2], "")
        table.add_row(*row, style=style)
    console = Console()
    console.print(table)
    console.print(desk.summary(), highlight=False)


@app.command()
def report(
    format: Annotated[Format, typer.Option(help="json, junit, gradescope or csv")],
    output: Annotated[Path | None, typer.Option(help="a file; else standard output")] = None,
    stage: Annotated[int | None, typer.Option(help="only this stage")] = None,
):
    """Check every exercise and export the scores. The exit code is 0 when the report is complete."""
    verdicts = [_checked(each, None, quiet=False) for each in desk.of_stage(stage)]
    text = WRITERS[format.value](verdicts)
    if output:
        output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        print(f"Written to {output}.", file=sys.stderr)
    else:
        _write_utf_8()
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
        raise desk.Refused(str(error)) from None
    print(f"Written to {target}. Use it with: COURSE_MODEL={target}")


def _checked(exercise, file, quiet):
    if quiet or not sys.stderr.isatty():
        return desk.check(exercise, file)
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        return desk.check(exercise, file, status.update)


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


def _write_utf_8():
    """What machines read is UTF-8, whatever a terminal here would take."""
    sys.stdout.reconfigure(encoding="utf-8")


def _typed(command, id, anyway=False):
    return f"course {command} {id}" + " --anyway" * anyway


def main():
    for stream in (sys.stdout, sys.stderr):
        # a terminal of another encoding than UTF-8, or a pipe: an emoji must not cost a verdict
        stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except desk.Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
