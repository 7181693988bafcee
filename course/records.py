"""What is kept of a learner's work: every checked version, every verdict, the hints seen.

All of it lies in `work/.history/` as plain files.
"""

import hashlib
import json
import time
from pathlib import Path

from course import answers
from course.grading import Verdict
from course.manifest import Exercise, exercises, work_folder


def keep(exercise: Exercise) -> Path | None:
    """Copies the learner's file into the history, unless that version is there or nothing is."""
    file = exercise.work_file
    if not file.is_file():
        return None
    source = file.read_bytes()
    digest = hashlib.sha256(source).hexdigest()[:10]
    folder = _history() / exercise.id
    folder.mkdir(parents=True, exist_ok=True)
    known = next(folder.glob(f"*-{digest}.py"), None)
    if known:
        return known
    copy = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest}.py"
    copy.write_bytes(source)
    return copy


def write(exercise: Exercise, text: str) -> Path | None:
    """Writes the learner's file; returns where the version before is kept, if there was one."""
    kept = keep(exercise)
    exercise.work_file.parent.mkdir(parents=True, exist_ok=True)
    exercise.work_file.write_text(text, encoding="utf-8")
    return kept


def hints_seen(id: str) -> int:
    return _hints().get(id, 0)


def note_hint(id: str, rung: int) -> None:
    """Notes that the hints up to that one, from 1, have been seen."""
    path = _history() / "hints.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_hints() | {id: rung}), encoding="utf-8")


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
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    path = _history() / "verdicts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def ever_passed(id: str) -> bool:
    return any(each["passed"] for each in _verdicts() if each["exercise"] == id)


def last_checked() -> str | None:
    """The exercise of the last check, if there was one."""
    verdicts = _verdicts()
    return verdicts[-1]["exercise"] if verdicts else None


def standing() -> list[dict]:
    """For each exercise {"exercise", "score", "state"}: the verdict on the file as it is now, or what
    is missing for one."""
    found = []
    last = {each["exercise"]: each for each in _verdicts()}
    for exercise in exercises().values():
        file = exercise.work_file
        verdict = last.get(exercise.id)
        row = {"exercise": exercise, "score": 0, "state": "not started"}
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if answers.is_stub(exercise.id, text):
                row["state"] = "not started"
            elif verdict is None:
                row["state"] = "not checked"
            elif verdict["sha256"] != _sha256(file):
                row["state"] = "changed since its check"
            else:
                row["state"] = "passed" if verdict["passed"] else "not passed yet"
                row["score"] = verdict["score"]
        found.append(row)
    return found


def _verdicts():
    path = _history() / "verdicts.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _hints():
    path = _history() / "hints.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _history():
    return work_folder() / ".history"
