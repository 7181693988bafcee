"""A log folder as 3.4 writes it, read as lines with fields.

    line = line_with(folder, "the model failed")    # waits for it a while
    line.field("logid"), line.message

A line is what ends in a line feed, and in nothing else at which `str.splitlines` breaks. Fields are
looked for one by one, so that a line of a wrong format still says what it can.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

LOG, WF = "web_service.log", "web_service.log.wf"
WHOLE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] \[pid:\d+\] \[level:[^\]]+\] \[logid:[A-Za-z0-9_-]{1,64}\]"
    r" \[CPU: [^\]]+\] \[Memory: [^\]]+\] \[GPU: [^\]]+\] ",
)
WAIT_S = 2.0
"""For a line that has been logged already; it only ends the wait for one that never comes."""


@dataclass(frozen=True)
class Line:
    text: str
    """Without its line feed."""

    def field(self, name):
        """What stands in `[name:...]`, without blanks at its ends; None if it is not there."""
        found = re.search(rf"\[{name}:([^\]]*)\]", self.text)
        return found[1].strip() if found else None

    @property
    def logid(self):
        return self.field("logid")

    @property
    def figures(self):
        """[CPU, Memory, GPU] as text."""
        return [self.field(name) for name in ("CPU", "Memory", "GPU")]

    @property
    def is_whole(self):
        """Whether it begins with all that stands before a message, as the format says."""
        return WHOLE.match(self.text) is not None

    @property
    def message(self):
        """What follows the last field."""
        return re.sub(r"^.*?\[GPU:[^\]]*\] ?", "", self.text, count=1)


def size(folder, name=LOG):
    """How many bytes the file has; 0 if there is none."""
    path = Path(folder, name)
    return path.stat().st_size if path.is_file() else 0


def raw(folder, name=LOG, start=0):
    """The file's bytes from there on; none if there is no file."""
    path = Path(folder, name)
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        return file.read()


def lines(folder, name=LOG, start=0):
    """The Lines that are complete. Bytes that are not UTF-8 stay as half surrogates."""
    whole = raw(folder, name, start).decode("utf-8", "surrogateescape").split("\n")[:-1]
    return [Line(text) for text in whole]


def lines_with(folder, text, name=LOG, start=0):
    """Those of them that contain the text."""
    return [line for line in lines(folder, name, start) if text in line.text]


def line_with(folder, text, name=LOG, start=0, wait_s=WAIT_S):
    """The first line that contains the text, waited for a while; None if none does."""
    until = time.monotonic() + wait_s
    while True:
        found = lines_with(folder, text, name, start)
        if found or time.monotonic() > until:
            return found[0] if found else None
        time.sleep(0.002)
