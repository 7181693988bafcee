"""How long a learner waits: for a verdict, for a lesson's server, and for a stream; what a log line costs.
`make bench`.

The reference answers are checked, so that every test runs to its end; a time counts only if they
pass. Cold is the first check, which starts the fork server; warm are those after it.

The stream's tokens per second are divided by those of a bare `model.generate` in this process, both
counted in forward passes, one after the other in each round.
"""

import argparse
import asyncio
import logging
import os
import statistics
import sys
import tempfile
import threading
import time

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from course.answers import load
from course.grading import check, forkserver
from course.lessons.server import LESSONS, serve
from course.manifest import exercises
from course.qwen import TINY

TOKENS = 128
LINES = 2000
MESSAGES = [{"role": "user", "content": "Tell me a story"}]
STREAMS = {
    2: ("/chat_stream", {"prompt": "Tell me a story", "max_new_tokens": TOKENS}),
    3: (
        "/v1/chat/completions",
        {"model": "tiny-qwen", "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0, "stream": True},
    ),
}
"""{stage: (path, body)}"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m course.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each (default 5)")
    runs = parser.parse_args().runs
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        # a fork server of its own: the learner's stays as it is
        tempfile.tempdir = os.environ["TMPDIR"] = folder
        try:
            _print(console, _checks, runs)
            os.environ["COURSE_WORK"] = folder  # stage 3's server writes a log there
            for measure in (_servers, _streams, _log_lines):
                _print(console, measure, runs)
        finally:
            if hasattr(os, "fork"):
                forkserver.stop()
    return 0


def _print(console, measure, runs):
    """Prints the table that `measure(runs, begin)` returns; until then, what it has begun with."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task("")

        def begin(what):
            if console.is_terminal:
                progress.update(line, description=what)
            else:
                print(f"measuring {what}", file=sys.stderr, flush=True)

        table = measure(runs, begin)
    console.print(table)
    console.print()


def _checks(runs, begin):
    table = Table("exercise", "", "cold", f"warm, median of {runs}", "slowest", box=None)
    cold, warm = [], []
    for each in exercises().values():
        if hasattr(os, "fork"):
            forkserver.stop()
        begin(f"{each.id}, cold")
        cold.append(_checked(each))
        begin(f"{each.id}, warm, {runs} times")
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
        sys.exit(f"No times, because the reference answer did not pass.\n{verdict}")
    return seconds


def _servers(runs, begin):
    table = Table("server", f"start to answer, median of {runs}", "slowest", box=None)
    for stage in LESSONS:
        times = []
        begin(f"starting stage {stage}'s server, {runs} times")
        for _ in range(runs):
            start = time.perf_counter()
            with serve(stage, solution=True):
                times.append(time.perf_counter() - start)
        table.add_row(f"stage {stage}", _s(statistics.median(times)), _s(max(times)))
    return table


def _streams(runs, begin):
    begin("the model alone")
    model, tokenizer = load("1.1", "load_chat_model", solution=True)(str(TINY))
    measure = load("2.6", "measure", solution=True)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    model.model.register_forward_hook(lambda *_: passes.append(1))
    passes = []
    table = Table("stream", "", "TTFT p50", "TTFT p95", box=None)
    os.environ["COURSE_LIMIT"] = "100000/minute"
    for stage, (path, body) in STREAMS.items():
        ratios = []
        begin(f"streams of stage {stage}'s server, {runs + 1} times")
        with serve(stage, solution=True) as server, httpx.Client(timeout=60) as client:
            for _ in range(runs + 1):
                passes.clear()
                start = time.perf_counter()
                model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
                bare = len(passes) / (time.perf_counter() - start)
                before = client.get(f"{server.url}/model").json()["steps"]
                start = time.perf_counter()
                client.post(server.url + path, json=body)
                seconds = time.perf_counter() - start
                streamed = client.get(f"{server.url}/model").json()["steps"] - before
                ratios.append(streamed / seconds / bare)
            ratio = statistics.median(ratios[1:])  # the first warms both up
            table.add_row(f"tokens/s of POST {path} / model.generate", f"{ratio:.2f}", "", "")
            if stage != 2:
                continue  # 2.6 reads the events of 2.2 alone
            for clients in (1, 4, 16):
                begin(f"stage {stage}'s server, {clients} clients at once")
                seen = asyncio.run(measure(server.url + path, clients=clients, **body))
                if seen.errors:
                    sys.exit(f"No figures, because {seen.errors} of {clients} streams failed.")
                speed = f"{seen.tokens_per_s:.0f} pieces/s"
                table.add_row(f"{clients} at once", speed, _s(seen.ttft_p50_s), _s(seen.ttft_p95_s))
    return table


def _log_lines(runs, begin):
    """What a line of 3.4's log costs whoever logs it, with the usual `load` and with one that hangs."""
    setup_logging = load("3.4", "setup_logging", solution=True)
    system_load = load("3.4", "system_load", solution=True)
    table = Table("a line in the log", f"median of {runs}", "slowest", box=None)
    held = threading.Event()
    for name, figures in (("", system_load), ("while `load` hangs", held.wait)):
        begin(f"{LINES} log lines {name}, {runs} times".replace(" ,", ","))
        with tempfile.TemporaryDirectory() as folder:
            setup_logging(folder, load=figures)
            times = []
            for _ in range(runs):
                start = time.perf_counter()
                for n in range(LINES):
                    logging.getLogger(__name__).info("line %d", n)
                times.append((time.perf_counter() - start) / LINES * 1e6)
            table.add_row(name, f"{statistics.median(times):.0f} µs", f"{max(times):.0f} µs")
    held.set()
    return table


def _s(seconds):
    return f"{seconds:.2f} s"


if __name__ == "__main__":
    sys.exit(main())
