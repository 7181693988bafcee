"""The verdict on one answer: as data, as JSON, as text of at most twelve lines, as HTML.

Findings come here as data: a sentence, and facts by name. Their labels, and how long lines are, are
known here alone.
"""

import html
import json
import re
import textwrap
from dataclasses import dataclass, field

from course.words import fact as fact_words
from course.words import marked, words

MARKS = {
    "passed": marked("ok"),
    "failed": marked("FAILED"),
    "timeout": marked("HANGS"),
    "not_run": marked("not run"),
}
LABELS = {
    "sent": marked("sent"),
    "expected": marked("expected"),
    "got": marked("got"),
    "where": marked("where"),
    "printed": marked("printed"),
    "hint": marked("hint"),
    "test": marked("test"),
    "note": marked("note"),
}
MOST_LINES = 12
WIDTH = 110
MOST_PIECES = 4
"""Of a line that is wrapped: an answer's own words may be endless."""
LONGEST_FACT = 190
LABEL_WIDTH = 12
COMMAND = re.compile(r"course [a-z]+ \d+(?:\.\d+)?(?: --[a-z]+)*")
CALLED = re.compile(r"course (hint|reset|solution) (\d+\.\d+)")
"""A command that is a function in a notebook."""
PLACE = re.compile(r"\bline (\d+), in ([\w<>.]+): ")
FILLER = "\ue001"
WIDE = re.compile("[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]")
CLOSING = "[，。：；？！、）》”…]"
PIECE = re.compile(f"[^{FILLER}]{FILLER}(?:{CLOSING}{FILLER}?)*|(?:[^{FILLER}](?!{FILLER}))+(?:{CLOSING}{FILLER}?)*")


@dataclass
class TestResult:
    id: str
    title: str
    status: str
    """passed, failed, timeout or not_run."""
    score: int
    max_score: int
    mistake: str = ""
    """What is wrong, in a sentence; for a passed test, what of it this machine could not test."""
    facts: dict = field(default_factory=dict)
    """By name what was sent, expected, got, printed, and where: text or data."""
    kind: str = ""
    """Which Mistake it was; or note, skipped, elsewhere (not for a server that runs already), grader (it failed)."""
    detail: str = ""
    """The raw traceback or output, for `--full` only."""

    @property
    def message(self) -> str:
        """The mistake, then a line for each fact, in English: machines read it."""
        facts = (_labelled(name, _short(fact)) for name, fact in self.facts.items())
        return "\n".join([self.mistake, *facts])

    @property
    def shown(self) -> str:
        """The message in the reader's language."""
        facts = (_labelled(_label(name), _short(_shown(name, fact))) for name, fact in self.facts.items())
        return "\n".join([words(self.mistake), *facts])


@dataclass
class Verdict:
    exercise: str
    title: str
    file: str
    tests_file: str
    duration_s: float
    tests: list[TestResult] = field(default_factory=list)
    counted: bool = True
    """False where this computer lacks what the check needs, and of a server that runs already."""
    url: str = ""
    """That server's base URL; it was checked instead of a file."""
    next_hint: str = ""
    mattered: str = ""
    """For those who have passed: what it was about."""
    what_next: str = ""

    @property
    def passed(self) -> bool:
        """Every test of the manifest reported `passed`; no test at all is not passed."""
        return bool(self.tests) and all(test.status == "passed" for test in self.tests)

    @property
    def right_elsewhere(self) -> bool:
        """Of a server that runs already: every test that can be run there passed. That is not `passed`."""
        return bool(self.url) and self.first_wrong is None

    @property
    def score(self) -> int:
        return sum(test.score for test in self.tests)

    @property
    def max_score(self) -> int:
        return sum(test.max_score for test in self.tests)

    @property
    def first_wrong(self) -> TestResult | None:
        """The first test that is not passed, of those that can be run."""
        wrong = (test for test in self.tests if test.status != "passed" and test.kind != "elsewhere")
        return next(wrong, None)

    @property
    def not_written(self) -> bool:
        """Whether the file is missing, or the code that a test needs is still the stub's."""
        return self.first_wrong is not None and self.first_wrong.kind == "not_written"

    @property
    def never_ran(self) -> bool:
        """Whether no test got as far as the answer's code: what is wrong is with the file."""
        first, *rest = self.tests or [None]
        return first is not None and first.status != "passed" and (all(test.status == "not_run" for test in rest))

    @property
    def failed(self) -> str | None:
        """The test that a hint may help with: the first wrong one, if it tested the answer's code."""
        wrong = self.first_wrong
        if wrong is None or wrong.status == "not_run" or self.not_written or self.never_ran:
            return None
        return wrong.id

    def as_json(self, full=False) -> dict:
        """The object that `--json` prints."""
        names = ["id", "title", "status", "score", "max_score", "message"]
        names += ["detail"] if full else []
        tests = [{name: getattr(test, name) for name in names} for test in self.tests]
        checked = {"url": self.url, "counted": False} if self.url else {"file": self.file}
        return {
            "exercise": self.exercise,
            "passed": self.passed,
            "score": self.score,
            "max_score": self.max_score,
            "duration_s": round(self.duration_s, 3),
            **checked,
            "tests": tests,
        }

    def lines(self, width: int = WIDTH) -> list[str]:
        """At most twelve lines: the outcome, the first thing that is wrong, the hint.

        Where there is too much to say the hint is cut first, then the longest facts.
        """
        head, message, tail, hint = self._parts(words("--full shows them all"))
        for most in range(MOST_PIECES, 0, -1):
            lines = [piece for line in head + message + tail for piece in line.wrapped(width, most)]
            if len(lines) <= MOST_LINES:
                break
        left = MOST_LINES - len(lines)
        if hint and left > 0:
            lines += hint.wrapped(width, min(left, MOST_PIECES))
        return lines[:MOST_LINES]

    def _parts(self, where_all_are):
        """As Lines: the outcome, the message, what follows it, and the hint or None."""
        passed = sum(test.status == "passed" for test in self.tests)
        ran = [test for test in self.tests if test.kind != "elsewhere"]
        points = _points(self)
        if self.url:
            values = {"passed": passed, "tests": len(ran), "url": self.url}
            outcome, points = words("{passed} of {tests} tests passed at {url}", **values), words("not counted")
        elif not self.counted:
            outcome, points = words("not checked and not counted"), words("no points are lost")
        elif self.not_written:
            outcome = words("not written yet")
        else:
            counts = {"passed": passed, "tests": len(self.tests)}
            if self.passed:
                outcome = words("passed, {passed} of {tests} tests", **counts)
            else:
                outcome = words("not passed yet, {passed} of {tests} tests", **counts)
        title = words("{id} {title}: {outcome}, {points}", **self._titled(), outcome=outcome, points=points)
        head, message = [_Line(title)], []
        tail = [_Line(words(self.mattered), whole=True)] if self.mattered else []
        tail += [_Line(words(test.mistake), "note") for test in self.tests if test.kind == "note"]
        wrong = self.first_wrong
        if wrong:
            message = [_Line(_in_one_line(words(wrong.mistake)), indent=2)]
            message += [_Line(_short(_shown(name, fact)), name) for name, fact in wrong.facts.items()]
        if wrong and (self.counted or self.url) and not self.not_written:
            head.append(_Line(words("{mark}: {title}", mark=self._mark(wrong), title=words(wrong.title))))
            tail.append(_Line(f"{self.tests_file}::{wrong.id}", "test"))
            others = len(ran) - passed - 1
            if others and any(test.status in ("failed", "timeout") for test in self.tests if test is not wrong):
                more = words("and {others} more; {where_all_are}", others=others, where_all_are=where_all_are)
                tail.append(_Line(more, indent=2))
        if self.what_next:
            tail.append(_Line(self.what_next))
        hint = _Line(self.next_hint, "hint") if wrong and self.next_hint else None
        return head, message, tail, hint

    def _titled(self):
        return {"id": self.exercise, "title": words(self.title)}

    def full_lines(self) -> list[str]:
        """Every test with its whole message, raw tracebacks included."""
        lines = self.lines()[:1]
        for test in self.tests:
            points = f" ({_points(test)})" if self.counted else ""
            lines.append(f"{_padded(self._mark(test), 8)} {words(test.title)}{points}")
            if test.message:
                shown = [test.shown, *([test.detail] if test.detail else [])]
                lines += textwrap.indent("\n".join(shown), "    ").splitlines()
        return lines + [line for line in (words(self.mattered), self.what_next) if line]

    def _mark(self, test):
        if self.not_written and test is self.first_wrong:
            return words("not written")
        return words(MARKS[test.status])

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, message, tail, hint = self._parts(words('see "All tests"'))
        if self.not_written or not self.counted:
            color = "#8c8c96"
        else:
            color = "#1a7f37" if self.passed else "#b35900"
        lines = [*head[1:], *message, *tail, *([hint] if hint else [])]
        rows = "".join(
            f"<tr><td style='text-align:left'><b>{self._mark(test)}</b></td>"
            f"<td style='text-align:left'>{html.escape(words(test.title))}{_mistake(test)}</td>"
            f"<td>{test.score} / {test.max_score}</td></tr>"
            for test in self.tests
        )
        return (
            f"<div class='course-verdict' data-passed='{str(self.passed).lower()}'"
            f" style='border-left:4px solid {color};padding:2px 12px'>"
            f"<b>{html.escape(head[0].text)}</b>"
            "<div style='font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;"
            f"margin:6px 0'>{''.join(line.html() for line in lines)}</div>"
            f"<details><summary>{words('All tests')}</summary><table>{rows}</table></details></div>"
        )


@dataclass
class _Line:
    """One line before it is wrapped, with its label if it has one."""

    text: str
    label: str = ""
    indent: int = 0
    whole: bool = False
    """Whether it is never cut."""

    def wrapped(self, width, most):
        """As at most `most` lines."""
        before = _labelled(_label(self.label), "") if self.label else " " * self.indent
        if self.label == "test":
            return [before + self.text]  # to be copied as it stands
        # a command is typed as it stands, so it stays in one line
        glue = "\ue000"
        kept = COMMAND.sub(lambda found: found[0].replace(" ", glue), self.text)
        text = _as_wide(kept)
        after = " " * (LABEL_WIDTH if self.label else 4)
        wrapper = _Wrapper(
            width,
            initial_indent=_as_wide(before),
            subsequent_indent=after,
            replace_whitespace=False,
            break_on_hyphens=False,
            placeholder=" …",
        )
        pieces = wrapper.wrap(text)
        if len(pieces) > most and not self.whole:
            last = pieces[most - 1]
            wrapper.max_lines = most
            pieces = wrapper.wrap(text)
            # textwrap cuts between words only: of a line without a blank it would leave nothing
            if pieces[-1] in (_as_wide(before) + "…", after + "…"):
                pieces[-1] = last[: width - 2] + " …"
        return [piece.replace(glue, " ").replace(FILLER, "") for piece in pieces] or [""]

    def html(self):
        # not wrapped: the page knows its width
        text = f"{_padded(_label(self.label), 9)} {self.text}" if self.label else self.text
        indent = 10 if self.label else 2
        nowrap = "<span style='white-space:nowrap'>{}</span>".format
        text = CALLED.sub(nowrap(r"course.\1(&quot;\2&quot;)"), _cut(text))
        text = COMMAND.sub(nowrap(r"\g<0>"), text)
        return f"<div style='padding-left:{indent}ch;text-indent:-{indent}ch'>{text}</div>"


def _label(name):
    return words(LABELS.get(name, name))


def _labelled(label, text):
    return f"  {_padded(label, 9)} {text}"


def _points(scored):
    return words("{score} of {most} points", score=scored.score, most=scored.max_score)


def _padded(text, columns):
    return text + " " * (columns - len(_as_wide(text)))


def _as_wide(text):
    """The text with as many characters as it has columns: a wide one is followed by a filler."""
    return WIDE.sub(lambda found: found[0] + FILLER, text)


class _Wrapper(textwrap.TextWrapper):
    """Also breaks between wide characters, which have no blanks, but not before their punctuation."""

    def _split(self, text):
        return [piece for chunk in super()._split(text) for piece in PIECE.findall(chunk)]


def _shown(name, fact):
    """The fact in the reader's language."""
    if not isinstance(fact, str):
        return fact
    if name == "where":
        return PLACE.sub(lambda found: words("line {number}, in {name}: ", number=found[1], name=found[2]), fact)
    return fact_words(fact, events=name == "sent")


def _short(fact):
    """A fact in one line: text as it is, data as JSON, the middle left out where it is long."""
    text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)
    text = _in_one_line(text)
    if len(text) > LONGEST_FACT:
        half = (LONGEST_FACT - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text


def _in_one_line(text):
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _mistake(test):
    return f"<div>{_cut(words(test.mistake))}</div>" if test.status in ("failed", "timeout") else ""


def _cut(line):
    longest = MOST_PIECES * WIDTH
    return html.escape(line if len(line) <= longest else line[:longest] + " …")
