"""How long a learner waits: for a verdict, and for a lesson's server to answer. `make bench`.

The reference answers are checked, so that every test runs to its end; a time counts only if they
pass. Cold is the first check, which starts the fork server; warm are those after it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

from rich.console import Console
from rich.table import Table

from course.grading import check, forkserver
from course.lessons.server import LESSONS, serve
from course.manifest import exercises


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m course.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each (default 5)")
    runs = parser.parse_args().runs
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        # a fork server of its own: the learner's stays as it is
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            with console.status("measuring, some minutes"):
                checks = _checks(runs)
                servers = _servers(runs)
        finally:
            if hasattr(os, "fork"):
                forkserver.stop()
    console.print(checks)
    console.print()
    console.print(servers)
    return 0


def _checks(runs):
    table = Table("exercise", "", "cold", f"warm, median of {runs}", "slowest", box=None)
    cold, warm = [], []
    for each in exercises().values():
        if hasattr(os, "fork"):
            forkserver.stop()
        cold.append(_checked(each))
        times = [_checked(each) for _ in range(runs)]
        warm.append(statistics.median(times))
        table.add_row(each.id, each.title, _s(cold[-1]), _s(warm[-1]), _s(max(times)))
    table.add_row("median", "", _s(statistics.median(cold)), _s(statistics.median(warm)), "")
    return table


def _checked(exercise):
    start = time.perf_counter()
    verdict = check(exercise.id, exercise.solution_file)
    seconds = time.perf_counter() - start
    if not verdict.passed:
        sys.exit(f"No times, for the reference answer did not pass.\n{verdict}")
    return seconds


def _servers(runs):
    table = Table("server", f"start to answer, median of {runs}", "slowest", box=None)
    for stage in LESSONS:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            with serve(stage, solution=True):
                times.append(time.perf_counter() - start)
        table.add_row(f"stage {stage}", _s(statistics.median(times)), _s(max(times)))
    return table


def _s(seconds):
    return f"{seconds:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
