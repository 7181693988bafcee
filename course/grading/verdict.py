"""The verdict on one answer: as data, as JSON, as text of at most twelve lines, as HTML."""

import html
import textwrap
from dataclasses import asdict, dataclass, field

MARKS = {"passed": "ok", "failed": "FAILED", "timeout": "HANGS", "not_run": "not run"}
MOST_LINES = 12


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

    def lines(self) -> list[str]:
        """At most twelve lines: the outcome, the first thing that is wrong, the next hint."""
        passed = sum(test.status == "passed" for test in self.tests)
        outcome = "passed" if self.passed else "not passed yet"
        lines = [
            f"{self.exercise} {self.title}: {outcome}, {passed} of {len(self.tests)} tests,"
            f" {self.score} of {self.max_score} points"
        ]
        wrong = self.first_wrong
        tail = [
            f"  {'note':<9} {test.message}"
            for test in self.tests
            if test.status == "passed" and test.message
        ]
        if wrong:
            lines.append(f"{MARKS[wrong.status]}: {wrong.title}")
            tail.append(f"  {'test':<9} {self.tests_file}::{wrong.id}")
            others = len(self.tests) - passed - 1
            if others and any(
                test.status in ("failed", "timeout") for test in self.tests if test is not wrong
            ):
                tail.append(f"  and {others} more; --full shows all")
            if self.next_hint:
                tail.append(f"  {'hint':<9} {self.next_hint}")
        if self.what_next:
            tail.append(self.what_next)
        tail = [piece for line in tail for piece in _wrapped(line, 2)]
        if wrong:
            message = [piece for line in wrong.message.splitlines() for piece in _wrapped(line, 2)]
            lines += ["  " + line for line in message[: MOST_LINES - len(lines) - len(tail)]]
        return (lines + tail)[:MOST_LINES]

    def full_lines(self) -> list[str]:
        """Every test with its whole message, raw tracebacks included."""
        lines = self.lines()[:1]
        for test in self.tests:
            lines.append(f"{MARKS[test.status]:<8} {test.title} ({test.score} of {test.max_score})")
            if test.message:
                shown = [test.message, *([test.detail] if test.detail else [])]
                lines += textwrap.indent("\n".join(shown), "    ").splitlines()
        if self.what_next:
            lines.append(self.what_next)
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        first, *rest = self.lines()
        color = "#1a7f37" if self.passed else "#b35900"
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{MARKS[test.status]}</b></td>"
            f"<td style='text-align:left'>{html.escape(test.title)}</td>"
            f"<td>{test.score} / {test.max_score}</td></tr>"
            for test in self.tests
        )
        return (
            f"<div class='course-verdict' data-passed='{str(self.passed).lower()}'"
            f" style='border-left:4px solid {color};padding:2px 12px'>"
            f"<b>{html.escape(first)}</b>"
            f"<pre style='white-space:pre-wrap;margin:6px 0'>{html.escape(chr(10).join(rest))}</pre>"
            f"<details><summary>All tests</summary><table>{rows}</table></details></div>"
        )


def _wrapped(line, indent):
    return textwrap.wrap(
        line, 110, subsequent_indent=" " * (indent + 10), drop_whitespace=True,
        replace_whitespace=False, break_on_hyphens=False,
    )[:4] or [""]
