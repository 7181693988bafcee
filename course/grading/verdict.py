"""The verdict on one answer: as data, as JSON, as text of at most twelve lines, as HTML."""

import html
import re
import textwrap
from dataclasses import asdict, dataclass, field

MARKS = {"passed": "ok", "failed": "FAILED", "timeout": "HANGS", "not_run": "not run"}
MOST_LINES = 12
WIDTH = 110
MOST_PIECES = 4
"""Of a line that is wrapped: an answer's own words may be endless."""
LABEL = re.compile(r" {2,4}(?=[a-z]{1,9} )(.{9} )")
COMMAND = re.compile(r"course [a-z]+ \d+(?:\.\d+)?(?: --[a-z]+)*")
CALLED = re.compile(r"course (hint|reset|solution) (\d+\.\d+)")
"""A command that is a function in a notebook."""


@dataclass
class TestResult:
    id: str
    title: str
    status: str
    """passed, failed, timeout or not_run."""
    score: int
    max_score: int
    message: str
    """What is wrong; for a passed test, what of it this machine could not test."""
    detail: str = ""
    """The raw traceback or output, for `--full` only."""


@dataclass
class Verdict:
    exercise: str
    title: str
    file: str
    tests_file: str
    duration_s: float
    tests: list[TestResult] = field(default_factory=list)
    next_hint: str = ""
    what_next: str = ""

    @property
    def passed(self) -> bool:
        """Every test of the manifest reported `passed`; no test at all is not passed."""
        return bool(self.tests) and all(test.status == "passed" for test in self.tests)

    @property
    def score(self) -> int:
        return sum(test.score for test in self.tests)

    @property
    def max_score(self) -> int:
        return sum(test.max_score for test in self.tests)

    @property
    def first_wrong(self) -> TestResult | None:
        """The first test that is not passed."""
        return next((test for test in self.tests if test.status != "passed"), None)

    @property
    def not_written(self) -> bool:
        """Whether the file is missing, or the code that a test needs is still the stub's."""
        first = self.first_wrong.message.partition("\n")[0] if self.first_wrong else ""
        return first.startswith(f"{self.exercise} is not written yet") or (
            "does not exist yet: run the exercise's cell" in first
        )

    @property
    def never_ran(self) -> bool:
        """Whether no test got as far as the answer's code: what is wrong is with the file."""
        first, *rest = self.tests or [None]
        return first is not None and first.status != "passed" and (
            all(test.status == "not_run" for test in rest)
        )

    def as_json(self, full=False) -> dict:
        """The object that `--json` prints."""
        tests = [asdict(test) for test in self.tests]
        if not full:
            for test in tests:
                del test["detail"]
        return {
            "exercise": self.exercise,
            "passed": self.passed,
            "score": self.score,
            "max_score": self.max_score,
            "duration_s": round(self.duration_s, 3),
            "file": self.file,
            "tests": tests,
        }

    def lines(self, width: int = WIDTH) -> list[str]:
        """At most twelve lines: the outcome, the first thing that is wrong, the hint."""
        head, message, tail = self._parts("--full shows all")
        head = [piece for line in head for piece in _wrapped(line, width)]
        tail = [piece for line in tail for piece in _wrapped(line, width)]
        message = [piece for line in message for piece in _wrapped(line, width)]
        room = max(MOST_LINES - len(head) - len(tail), 0)
        return (head + message[:room] + tail)[:MOST_LINES]

    def _parts(self, where_all_are):
        """The lines, not yet wrapped: the outcome, the message, and what comes after it."""
        passed = sum(test.status == "passed" for test in self.tests)
        points = f"{self.score} of {self.max_score} points"
        if self.not_written:
            outcome = "not written yet"
        else:
            outcome = "passed" if self.passed else "not passed yet"
            outcome += f", {passed} of {len(self.tests)} tests"
        head, message = [f"{self.exercise} {self.title}: {outcome}, {points}"], []
        tail = [
            f"  {'note':<9} {test.message}"
            for test in self.tests
            if test.status == "passed" and test.message
        ]
        wrong = self.first_wrong
        if wrong:
            message = ["  " + line for line in wrong.message.splitlines()]
        if wrong and not self.not_written:
            head.append(f"{MARKS[wrong.status]}: {wrong.title}")
            tail.append(f"  {'test':<9} {self.tests_file}::{wrong.id}")
            others = len(self.tests) - passed - 1
            if others and any(
                test.status in ("failed", "timeout") for test in self.tests if test is not wrong
            ):
                tail.append(f"  and {others} more; {where_all_are}")
        if wrong and self.next_hint:
            tail.append(f"  {'hint':<9} {self.next_hint}")
        if self.what_next:
            tail.append(self.what_next)
        return head, message, tail

    def full_lines(self) -> list[str]:
        """Every test with its whole message, raw tracebacks included."""
        lines = self.lines()[:1]
        for test in self.tests:
            points = f"{test.score} of {test.max_score} points"
            lines.append(f"{self._mark(test):<8} {test.title} ({points})")
            if test.message:
                shown = [test.message, *([test.detail] if test.detail else [])]
                lines += textwrap.indent("\n".join(shown), "    ").splitlines()
        if self.what_next:
            lines.append(self.what_next)
        return lines

    def _mark(self, test):
        if self.not_written and test is self.first_wrong:
            return "not written"
        return MARKS[test.status]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, message, tail = self._parts('open "All tests"')
        if self.not_written:
            color = "#8c8c96"
        else:
            color = "#1a7f37" if self.passed else "#b35900"
        lines = "".join(map(_html_line, [*head[1:], *message, *tail]))
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{self._mark(test)}</b></td>"
            f"<td style='text-align:left'>{html.escape(test.title)}{_first_line(test)}</td>"
            f"<td>{test.score} / {test.max_score}</td></tr>"
            for test in self.tests
        )
        return (
            f"<div class='course-verdict' data-passed='{str(self.passed).lower()}'"
            f" style='border-left:4px solid {color};padding:2px 12px'>"
            f"<b>{html.escape(head[0])}</b>"
            "<div style='font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;"
            f"margin:6px 0'>{lines}</div>"
            f"<details><summary>All tests</summary><table>{rows}</table></details></div>"
        )


def _wrapped(line, width):
    if line.startswith("  test "):
        return [line]  # to be copied as it stands
    # a command is typed as it stands, so it stays in one line
    glue = "\ue000"
    kept = COMMAND.sub(lambda found: found[0].replace(" ", glue), line)
    label = LABEL.match(line)
    pieces = textwrap.wrap(
        kept, width, subsequent_indent=" " * (label.end() if label else 4),
        replace_whitespace=False, break_on_hyphens=False, max_lines=MOST_PIECES, placeholder=" …",
    )
    return [piece.replace(glue, " ") for piece in pieces] or [""]


def _first_line(test):
    if test.status not in ("failed", "timeout") or not test.message:
        return ""
    return f"<div>{_cut(test.message.splitlines()[0])}</div>"


def _cut(line):
    longest = MOST_PIECES * WIDTH
    return html.escape(line if len(line) <= longest else line[:longest] + " …")


def _html_line(line):
    # not wrapped: the page knows its width
    indent = 10 if LABEL.match(line) else 2
    line = LABEL.sub(r"\1", line, count=1) if indent == 10 else line.removeprefix("  ")
    nowrap = "<span style='white-space:nowrap'>{}</span>".format
    text = CALLED.sub(nowrap(r"course.\1(&quot;\2&quot;)"), _cut(line))
    text = COMMAND.sub(nowrap(r"\g<0>"), text)
    return f"<div style='padding-left:{indent}ch;text-indent:-{indent}ch'>{text}</div>"
