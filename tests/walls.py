"""The answers of both walls: `tests/right/ID/*.py` pass, `tests/wrong/ID/*` fail by the test that they name.

A wrong answer is an edit of a right one, or a whole `.py` where its technique is found in no right answer:

    # caught by: test_any_text_survives | says: not JSON
    # base: cancelled_tasks
    <<<<
                    await socket.send_json({"type": "token", "text": piece})
    ====
                    await socket.send_text(f'{{"type": "token", "text": "{piece}"}}')
    >>>>

The first line names the test that catches it (after a comma: others that may fail too) and a phrase of its message.
The base is a file of `tests/right/ID/`, or `solution`. Old texts are whole lines that occur exactly once in the base
as the edits above have left it. This writes the whole answer, which `course check ID --file answer.py` takes:

    python -m tests.walls tests/wrong/2.4/json_by_hand.edit > answer.py
"""

import re
import sys
from pathlib import Path

from course.manifest import ROOT, exercises

WRONG = sorted((ROOT / "tests" / "wrong").glob("*/*.*"))
RIGHT = sorted((ROOT / "tests" / "right").glob("*/*.*"))
HEAD = re.compile(r"# caught by: (\w+(?:, \w+)*) \| says: (.+)\n")
LINES = r"((?:(?!<<<<|====|>>>>).*\n)*)"
EDIT = re.compile(rf"<<<<\n{LINES}====\n{LINES}>>>>\n")


def caught_by(file: Path) -> tuple[list[str], str]:
    """The tests that may fail, first the one that must, and a phrase of its message."""
    found = HEAD.match(file.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{file}: begin it with: # caught by: test_... | says: a phrase of its message")
    return found[1].split(", "), found[2].strip()


def answer(file: Path) -> str:
    """The whole source of an answer; for an edit, its base with the edits made.

    Raises:
        ValueError: the file is not an edit, or an old text does not occur exactly once.
    """
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        return text
    found = re.fullmatch(rf"{HEAD.pattern}# base: (\w+)\n((?:{EDIT.pattern})+)", text)
    if not found:
        raise ValueError(
            f"{file}: write # caught by: ..., # base: ..., then edits: <<<< old ==== new >>>>, on lines alone"
        )
    id, base = file.absolute().parent.name, found[3]
    base = exercises()[id].solution_file if base == "solution" else ROOT / "tests" / "right" / id / f"{base}.py"
    made = "\n" + base.read_text(encoding="utf-8")
    for number, (old, new) in enumerate(EDIT.findall(found[4]), 1):
        times = made.count("\n" + old)
        if times != 1:
            raise ValueError(f"{file}: edit {number} does not fit: its old text occurs {times} times in {base}:\n{old}")
        made = made.replace("\n" + old, "\n" + new)
    return made[1:]


if __name__ == "__main__":
    print(answer(Path(sys.argv[1])), end="")
