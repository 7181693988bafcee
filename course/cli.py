"""The `course` command."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from course import asking, desk
from course.report import WRITERS
from course.words import words
from course.words.commands import translate

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serving Qwen: work on an exercise, check it, serve what you built.",
)
Id = Annotated[str, typer.Argument(help="an exercise, such as 1.3", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask before sending requests to another computer")]


class Format(StrEnum):
    json = "json"
    junit = "junit"
    gradescope = "gradescope"
    csv = "csv"


@app.command()
def check(
    ids: Annotated[
        list[str] | None, typer.Argument(help="exercises, such as 1.3; by default, the last one checked")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="check this file instead of yours")] = None,
    stage: Annotated[int | None, typer.Option(help="check all exercises in a stage")] = None,
    all: Annotated[bool, typer.Option("--all", help="check every exercise")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    full: Annotated[bool, typer.Option("--full", help="show every test, with raw tracebacks")] = False,
    url: Annotated[str | None, typer.Option(help="check a server that is already running; earns no points")] = None,
    yes: Yes = False,
):
    """Check an answer. The exit code is 0 only if everything you asked it to check has passed.

    With --url, it runs only the tests that need nothing but a server's address; exercises 2.2 and 3.7 have such tests.
    """
    if bool(ids) + (stage is not None) + all > 1:
        raise desk.Refused(words("Use one of these: course check 1.3, course check --stage 1 or course check --all."))
    whole = all or stage is not None
    if whole:
        chosen = desk.of_stage(stage)
    else:
        chosen = [desk.chosen(id, "check", _typed) for id in ids or [None]]
    if file is not None and (whole or len(chosen) > 1):
        raise desk.Refused(words("--file works with one exercise only: course check 1.3 --file my_answer.py"))
    if file is not None and not file.is_file():
        raise desk.Refused(words("There is no file {file}.", file=file))
    if url is not None and (file is not None or whole or len(chosen) > 1):
        raise desk.Refused(words("--url works with one exercise only: course check 3.7 --url http://127.0.0.1:8000"))
    if url is not None:
        asking.ask_before_sending(url, words("Up to 200 requests"), yes)
    verdicts = [_checked(each, file, url, quiet=as_json) for each in chosen]
    if as_json:
        _write_utf_8()
        found = [verdict.as_json(full) for verdict in verdicts]
        one = len(found) == 1 and not whole
        print(json.dumps(found[0] if one else found, ensure_ascii=False, indent=2))
    else:
        for verdict in verdicts:
            _print_verdict(verdict, full)
        if whole or len(chosen) > 1:
            counted = [verdict for verdict in verdicts if verdict.counted]
            passed = sum(verdict.passed for verdict in counted)
            score = sum(verdict.score for verdict in verdicts)
            most = sum(verdict.max_score for verdict in verdicts)
            values = {"passed": passed, "many": len(counted), "score": score, "most": most}
            said = [words("{passed} of {many} exercises passed, {score} of {most} points.", **values)]
            if len(counted) < len(verdicts):
                listed = ", ".join(each.exercise for each in verdicts if not each.counted)
                said.append(words("Not counted: {listed}.", listed=listed))
            print(*said)
    # of a stage, or of all, what cannot be checked here is not asked for
    asked_for = [verdict for verdict in verdicts if verdict.counted or not whole]
    raise typer.Exit(0 if all_passed(asked_for) or verdicts[0].right_elsewhere else 1)


def all_passed(verdicts) -> bool:
    return bool(verdicts) and all(verdict.passed for verdict in verdicts)


@app.command()
def hint(
    id: Annotated[str | None, typer.Argument(help="an exercise; by default, the last one checked")] = None,
):
    """Show the hint for the test that failed last, or the next hint."""
    print(desk.hint(desk.chosen(id, "hint", _typed)))


@app.command()
def solution(
    id: Id,
    anyway: Annotated[bool, typer.Option("--anyway", help="show it even before you have passed")] = False,
):
    """Show how your answer differs from the reference answer, apart from style."""
    from rich.console import Console
    from rich.syntax import Syntax

    language, text = desk.solution(desk.chosen(id, "solution", _typed), anyway, _typed)
    if language == "text":
        print(text)
    else:
        Console(soft_wrap=True).print(Syntax(text, language, background_color="default"))


@app.command()
def reset(id: Id):
    """Restore the stub, and keep a copy of your code."""
    print(desk.reset(desk.chosen(id, "reset", _typed)))


@app.command()
def progress():
    """Show all exercises, their points, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    heads = ("", words("exercise"), words("status"), words("points"))
    table = Table(*heads, box=None, pad_edge=False)
    for row in desk.rows():
        style = {words("passed"): "green", words("not passed yet"): "yellow"}.get(row[2], "")
        table.add_row(*row, style=style)
    console = Console()
    console.print(table)
    console.print(desk.summary(), highlight=False)


@app.command()
def report(
    format: Annotated[Format, typer.Option(help="json, junit, gradescope or csv")],
    output: Annotated[Path | None, typer.Option(help="a file; by default, standard output")] = None,
    stage: Annotated[int | None, typer.Option(help="check only this stage")] = None,
):
    """Check every exercise and export the scores. The exit code is 0 when the report is complete."""
    verdicts = [_checked(each, None, None, quiet=False) for each in desk.of_stage(stage)]
    text = WRITERS[format.value](verdicts)
    if output:
        output.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        print(words("Written to {file}.", file=output), file=sys.stderr)
    else:
        _write_utf_8()
        print(text.rstrip("\n"))


@app.command()
def serve(
    stage: Annotated[str, typer.Argument(help="a stage, such as 1, or one of its exercises")],
    solution: Annotated[bool, typer.Option("--solution", help="serve the reference answers")] = False,
    port: Annotated[int, typer.Option(help="the port to listen on")] = 8000,
    host: Annotated[
        str, typer.Option(help="the address to listen on; any other than 127.0.0.1 lets other computers connect")
    ] = "127.0.0.1",
    model: Annotated[str | None, typer.Option(help="the model: a folder or a hub name")] = None,
    tuned: Annotated[bool, typer.Option("--tuned", help="run stage 4 on the course's fast slot model")] = False,
    thread: Annotated[bool, typer.Option("--thread", help="run stage 4 with its engine in a thread")] = False,
):
    """Run your own server, built from your answers. Ctrl-C stops it."""
    from course.lessons.server import run

    raise typer.Exit(run(stage, solution=solution, port=port, host=host, model=model, tuned=tuned, thread=thread))


@app.command()
def audit(
    url: Annotated[str, typer.Argument(help="base URL, such as http://127.0.0.1:8000/v1", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="the model's name; by default, the first one that the server lists")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="the environment variable that holds the API key")] = None,
    clients: Annotated[int, typer.Option(min=2, max=32, help="how many requests to send at once")] = 16,
    only: Annotated[list[str] | None, typer.Option(help="the id of a check to run; can be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    junit: Annotated[Path | None, typer.Option(help="also write JUnit XML to this file")] = None,
    yes: Yes = False,
):
    """Examine any OpenAI-compatible chat server. The exit code is 0 only if no check failed."""
    from course.audit.command import run

    raise typer.Exit(run(url, model, api_key_env, clients, only, as_json, junit, yes))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context):
    """Open the first notebook in JupyterLab. Options are passed on to jupyter lab."""
    from course import lab as jupyter

    jupyter.main(context.args)


@app.command()
def doctor():
    """Look for anything that could get in your way, and say how to fix it."""
    from course import doctor as doctors

    findings = doctors.diagnose()
    doctors.show(findings)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def convert_qwen1(source: Path, target: Path):
    """Convert a legacy Qwen-1 checkpoint folder into a native Qwen2 one."""
    from course.qwen.convert_qwen1 import ConversionError, convert

    try:
        convert(source, target)
    except ConversionError as error:
        raise desk.Refused(str(error)) from None
    print(words("Written to {folder}. Use it with: COURSE_MODEL={folder}", folder=target))


def _checked(exercise, file, url, quiet):
    check, what = (desk.check_elsewhere, url) if url else (desk.check, file)
    if quiet or not sys.stderr.isatty():
        return check(exercise, what)
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        return check(exercise, what, status.update)


def _print_verdict(verdict, full):
    from rich.console import Console
    from rich.text import Text

    from course.grading.verdict import WIDTH

    console = Console(soft_wrap=True)
    lines = verdict.full_lines() if full else verdict.lines(max(60, min(WIDTH, console.width)))
    style = "bold" if verdict.not_written else "bold yellow"
    console.print(Text(lines[0], style="bold green" if verdict.passed or verdict.right_elsewhere else style))
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
    command = typer.main.get_command(app)
    translate(command)
    try:
        command()
    except desk.Refused as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
