"""The manifest: `exercises.toml` read into plain data. Everything else asks here where things are."""

import functools
import importlib.util
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course.words import marked, words

ROOT = Path(__file__).resolve().parent.parent


class UnknownExercise(Exception):
    """There is no exercise of that id; the message lists those there are."""


@dataclass(frozen=True)
class Test:
    id: str
    points: int
    title: str
    """Where the file has none it is the test's name, in words."""
    hint: int | None = None
    """Which rung of the ladder helps with it, from 1."""
    elsewhere: str = ""
    """What of it `check --url` looks at in a server that is already running: "all", "everything except ..."; "" for
    nothing, where it needs the answer in a room."""


@dataclass(frozen=True)
class Exercise:
    id: str
    title: str
    file: str
    """Relative to the learner's `work/` and, for the reference answer, to `solutions/`."""
    mattered: str
    """Two sentences for those who have passed."""
    tests: tuple[Test, ...]
    hints: tuple[str, ...]
    limit_s: float = 10.0
    """How long one call into the answer may take before it counts as hung."""
    optional: bool = False
    extra: str = ""
    """The extra of pyproject.toml, named like its package, without which the answer cannot be checked."""

    @property
    def stage(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def tests_file(self) -> str:
        """Relative to the course's root."""
        return f"tests/stage{self.stage}/test_{self.id.replace('.', '_')}_{Path(self.file).name}"

    def test(self, id: str) -> Test:
        return next(test for test in self.tests if test.id == id)

    @property
    def lack(self) -> str:
        """What this computer lacks for a check, and what to do; "" if nothing. What it is checked on is then not
        counted: neither passed nor failed, and out of no points."""
        if not self.extra:
            return ""
        if os.name == "nt":
            return marked(
                f"this exercise cannot be checked on Windows: {self.extra}"
                " does not start there in the way the check needs."
            )
        if importlib.util.find_spec(self.extra) is not None:
            return ""
        return marked(
            f"this exercise needs the package {self.extra}, which is not installed here."
            f' Run make setup EXTRAS={self.extra}, or python -m pip install -c constraints.txt -e ".[{self.extra}]"'
        )

    @property
    def max_score(self) -> int:
        return sum(test.points for test in self.tests)

    @property
    def work_file(self) -> Path:
        return work_folder() / self.file

    @property
    def solution_file(self) -> Path:
        return ROOT / "solutions" / self.file


def work_folder() -> Path:
    """Where the learner's answers are: `work/`, or the folder that COURSE_WORK names."""
    return Path(os.environ.get("COURSE_WORK") or ROOT / "work").resolve()


@functools.cache
def exercises() -> dict[str, Exercise]:
    """All exercises by id, in the order of the course."""
    data = tomllib.loads((ROOT / "course" / "exercises.toml").read_text(encoding="utf-8"))
    found = {}
    for entry in data["exercise"]:
        entry = dict(entry)
        entry["tests"] = tuple(_test(**test) for test in entry["tests"])
        entry["hints"] = tuple(hint.strip() for hint in entry["hints"])
        found[entry["id"]] = Exercise(**entry)
    return found


def _test(id, points, title=None, hint=None, elsewhere=""):
    return Test(id, points, title or id.removeprefix("test_").replace("_", " "), hint, elsewhere)


def find(id: str) -> Exercise:
    """The exercise of that id.

    Raises:
        UnknownExercise: with the ids that exist.
    """
    try:
        return exercises()[str(id)]
    except KeyError:
        known = ", ".join(exercises())
        said = words("There is no exercise {id}. The exercises are: {known}.", id=id, known=known)
        raise UnknownExercise(said) from None


def shown(path: Path) -> str:
    """The path as a learner would type it: relative to the course where it lies inside."""
    path = Path(path).absolute()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
