"""The `course` command: as a user runs it, in a process of its own, or in this one, which costs no start."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from course import cli
from course.manifest import ROOT


def course(*arguments, **environment):
    """The completed process of `course ...`, with what it printed as text."""
    return subprocess.run(
        [sys.executable, "-m", "course", *arguments],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "200", **environment},
        timeout=300,
    )


def course_here(*arguments, **environment):
    """The same of `course ...` in this process."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "200", **environment}),
        mock.patch.object(sys, "argv", ["course", *arguments]),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    out.flush(), error.flush()
    said = [stream.detach().getvalue().decode("utf-8") for stream in (out, error)]
    return subprocess.CompletedProcess(arguments, code, *said)
