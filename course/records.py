"""What is kept of a learner's work: every checked version, every verdict, the hints seen.

All of it lies in `work/.history/` as plain files. A file is written beside its place and renamed, so that a
full disk leaves what was there; it is believed by what is in it, never by its name. A record that cannot
be read is left out, and `unread` says so. Of two checks at once, each keeps its record: one waits for the other.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from course import answers
from course.grading import Verdict
from course.manifest import Exercise, exercises, shown, work_folder
from course.words import marked, words

_KEYS = {"exercise", "passed", "score", "max_score", "sha256"}


class CannotKeep(Exception):
    """Something of the learner's cannot be written. The message says why and what to do; nothing that
    was there has changed."""


def keep(exercise: Exercise) -> Path | None:
    """Copies the learner's file into the history, unless that version is there or nothing is.

    Raises:
        CannotKeep: there is no such copy.
    """
    file = exercise.work_file
    if not file.is_file():
        return None
    source = file.read_bytes()
    digest = hashlib.sha256(source).hexdigest()[:10]
    folder = _history() / exercise.id
    for known in folder.glob(f"*-{digest}.py"):
        if known.read_bytes() == source:
            return known
    copy = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}.py"
    _write(copy, source)
    return copy


def write(exercise: Exercise, text: str) -> Path | None:
    """Writes the learner's file; returns where the version before is kept, if there was one.

    Raises:
        CannotKeep: the file is as it was.
    """
    kept = keep(exercise)
    _write(exercise.work_file, text.encode())
    return kept


def hints_seen(id: str) -> list[int]:
    """The numbers of the hints, from 1, in the order in which they were asked for."""
    seen = (_hints() or {}).get(id, [])
    # once only the last one's number was kept
    return list(range(1, seen + 1)) if isinstance(seen, int) else seen


def note_hint(id: str, number: int) -> None:
    """Notes that this hint, from 1, has been seen."""
    with _alone():
        seen = [*(each for each in hints_seen(id) if each != number), number]
        _write(_history() / "hints.json", json.dumps((_hints() or {}) | {id: seen}).encode())


def note(exercise: Exercise, verdict: Verdict) -> None:
    """Notes the verdict on the learner's file as it is now."""
    file = exercise.work_file
    if not file.is_file():
        return
    line = {
        "exercise": exercise.id,
        "passed": verdict.passed,
        "score": verdict.score,
        "max_score": verdict.max_score,
        "sha256": _sha256(file),
        **({"failed": verdict.failed} if verdict.failed else {}),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path = _history() / "verdicts.jsonl"
    with _alone():
        before = path.read_bytes() if path.is_file() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"  # a line that was cut stays one line
        _write(path, before + json.dumps(line).encode() + b"\n")


def ever_passed(id: str) -> bool:
    return any(each["passed"] for each in _verdicts() if each["exercise"] == id)


def failed_last(id: str) -> str | None:
    """The test that the last check of that exercise showed as failed, if it showed one."""
    last = next((each for each in reversed(_verdicts()) if each["exercise"] == id), {})
    return last.get("failed")


def last_checked() -> str | None:
    """The exercise of the last check, if there was one."""
    verdicts = _verdicts()
    return verdicts[-1]["exercise"] if verdicts else None


def standing() -> list[dict]:
    """For each exercise {"exercise", "score", "max_score", "state"}: the verdict on the file as it is now, or what
    is missing for one. What this computer cannot check is out of no points, unless it was passed."""
    found = []
    last = {each["exercise"]: each for each in _verdicts()}
    for exercise in exercises().values():
        file = exercise.work_file
        verdict = last.get(exercise.id)
        row = {"exercise": exercise, "score": 0, "max_score": exercise.max_score, "state": marked("not started")}
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if answers.is_stub(exercise.id, text):
                row["state"] = "not started"
            elif verdict is None:
                row["state"] = marked("not checked")
            elif verdict["sha256"] != _sha256(file):
                row["state"] = marked("changed since the last check")
            else:
                row["state"] = marked("passed") if verdict["passed"] else marked("not passed yet")
                row["score"] = verdict["score"]
        if row["state"] != "passed" and exercise.lack:
            row |= {"score": 0, "max_score": 0, "state": words("needs {package}", package=exercise.extra)}
        found.append(row)
    return found


def unread() -> list[str]:
    """A sentence for each file of the history of which something cannot be read."""
    said = []
    if bad := sum(record is None for record in _records()):
        file = shown(_history() / "verdicts.jsonl")
        said.append(words("{file}: lines that could not be read were skipped: {bad}.", file=file, bad=bad))
    if _hints() is None:
        file = shown(_history() / "hints.json")
        said.append(words("{file} cannot be read, so the record of which hints you have seen is lost.", file=file))
    return said


def _verdicts():
    return [record for record in _records() if record is not None]


def _records():
    """The verdicts, in order; None for a line that is not one."""
    path = _history() / "verdicts.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [_record(line) for line in lines if line.strip()]


def _record(line):
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and _KEYS <= record.keys():
            return record
    return None


def _hints():
    """{exercise id: numbers of the hints seen}; None if the file cannot be read."""
    path = _history() / "hints.json"
    if not path.is_file():
        return {}
    with contextlib.suppress(ValueError):
        hints = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(hints, dict) and all(map(_are_numbers, hints.values())):
            return hints
    return None


def _are_numbers(seen):
    return type(seen) is int or isinstance(seen, list) and all(type(number) is int for number in seen)


def _write(path, data):
    """Writes the file whole, or leaves it as it was."""
    path = path.resolve()
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(data)
        half.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half.unlink()
        raise _cannot_keep(path, error) from None


@contextlib.contextmanager
def _alone():
    """No other process changes the history's files meanwhile."""
    import filelock  # slow to import

    lock = filelock.FileLock(_history() / ".lock", timeout=30)
    try:
        _history().mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _cannot_keep(_history(), error) from None
    try:
        yield
    finally:
        lock.release()


def _cannot_keep(path, error):
    said = words(
        "Free some space, or set COURSE_WORK to a folder that you can write to: {path} cannot be written ({why})."
        " Existing files have not changed.",
        path=shown(path),
        why=error.strerror or error,
    )
    return CannotKeep(said)


def _sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _history():
    return work_folder() / ".history"
