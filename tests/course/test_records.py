"""What is kept of a learner's work, where the disk is full, a file is damaged or a terminal knows little."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from course import desk, records
from course.manifest import ROOT, find

ANSWER = "def count_tokens(tokenizer, text):\n    raise ValueError('👍🏽 数')\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The learner's folder, with an answer to 0.1 in it."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    (tmp_path / "stage0").mkdir()
    (tmp_path / "stage0" / "count_tokens.py").write_text(ANSWER, encoding="utf-8")
    return tmp_path


def course(*arguments, full_disk=False, **environment):
    command = [sys.executable, "-m", "course.cli", *arguments]
    if full_disk:
        command = ["bash", "-c", 'ulimit -f 0; exec "$@"', "course", *command]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=300)


def copies(work):
    return [file.read_text(encoding="utf-8") for file in (work / ".history" / "0.1").glob("*.py")]


def test_a_copy_is_believed_by_its_content(work):
    digest = hashlib.sha256(ANSWER.encode()).hexdigest()[:10]
    (work / ".history" / "0.1").mkdir(parents=True)
    (work / ".history" / "0.1" / f"20260101-000000-{digest}.py").write_text("")
    assert "kept in" in desk.reset(find("0.1"))
    assert ANSWER in copies(work)


@pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: a full disk needs ulimit to be played")
def test_a_full_disk_costs_no_answer(work):
    done = course("reset", "0.1", full_disk=True)
    assert done.returncode == 2 and b"COURSE_WORK" in done.stderr, done.stderr
    assert (work / "stage0" / "count_tokens.py").read_text(encoding="utf-8") == ANSWER
    assert course("reset", "0.1").returncode == 0
    assert copies(work) == [ANSWER]
    assert not list(work.rglob(".*.py.*"))


def test_a_folder_that_cannot_be_written_costs_no_verdict(work):
    (work / ".history").write_text("a file, where a folder should be")
    done = course("check", "0.1")
    said = " ".join(done.stdout.decode().split())
    assert "ValueError" in said and "This verdict was not saved" in said and "COURSE_WORK" in said
    assert b"Traceback" not in done.stderr + done.stdout
    done = course("reset", "0.1")
    assert done.returncode == 2 and b"COURSE_WORK" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "bad", [b'{"exercise": "0.1", "pas', b"[1, 2]\n", b"7\n", b"\xff\xfe\n", b'{"exercise": "0.1"}\n', b"\0\0\0\n"]
)
def test_a_bad_record_is_left_out_and_said(work, bad):
    desk.check(find("0.1"))
    verdicts = work / ".history" / "verdicts.jsonl"
    verdicts.write_bytes(verdicts.read_bytes() + bad)
    said = desk.summary()
    assert "verdicts.jsonl: lines that could not be read were skipped: 1" in said
    assert desk.rows()[0][2] == "not passed yet"
    desk.check(find("0.1"))
    assert "were skipped: 1" in desk.summary() and verdicts.read_bytes().count(b'"sha256"') == 2
    assert desk.chosen(None, "check", str).id == "0.1"


# what each of two processes does at once
NOTES = """
import sys
from course import records
from course.grading.verdict import Verdict
from course.manifest import find

print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[1]), 100, 2):
    records.note(find("0.1"), Verdict("0.1", "", "", "", 0.0))
    records.note_hint("0.1", number)
"""


def test_checks_at_once_lose_no_record(work):
    command = [sys.executable, "-c", NOTES]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    two = [subprocess.Popen([*command, first], **pipes) for first in "01"]
    for process in two:
        assert process.stdout.readline() == "ready\n"
    for process in two:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in two:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert (work / ".history" / "verdicts.jsonl").read_bytes().count(b'"sha256"') == 100
    assert sorted(records.hints_seen("0.1")) == list(range(100)) and records.unread() == []


@pytest.mark.parametrize("bad", ["{", "[]", '{"0.1": "many"}', '{"0.1": [true]}', ""])
def test_hints_that_cannot_be_read_begin_again(work, bad):
    desk.hint(find("0.1"))
    (work / ".history" / "hints.json").write_text(bad)
    assert "hints.json cannot be read" in desk.summary()
    assert desk.hint(find("0.1")).startswith("Hint 1 of")
    assert "hints.json" not in desk.summary()


def test_records_that_an_older_course_left_are_read(work):
    desk.check(find("0.1"))
    verdicts = work / ".history" / "verdicts.jsonl"
    record = json.loads(verdicts.read_text())
    assert record.pop("failed") == find("0.1").tests[0].id
    verdicts.write_text(json.dumps(record) + "\n")
    (work / ".history" / "hints.json").write_text('{"0.1": 2}')
    assert records.failed_last("0.1") is None and records.unread() == []
    assert desk.hint(find("0.1")).startswith("Hint 3 of 3")


def test_what_is_not_utf_8_is_kept_when_its_cell_runs(work):
    gbk = "# 数\nx = 1\n".encode("gbk")
    (work / "stage0" / "count_tokens.py").write_bytes(gbk)
    assert desk.keep_cell("#| exercise 0.1\nx = 2\n") is None
    assert (work / "stage0" / "count_tokens.py").read_text() == "#| exercise 0.1\nx = 2\n"
    kept = [file.read_bytes() for file in (work / ".history" / "0.1").glob("*.py")]
    assert kept == [gbk]


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "cp1252"])
def test_a_pipe_of_another_encoding_gets_its_verdict(work, encoding):
    done = course("check", "0.1", PYTHONIOENCODING=encoding)
    assert b"ValueError" in done.stdout and b"Traceback" not in done.stderr, done.stderr
    done = course("check", "0.1", "--json", PYTHONIOENCODING=encoding)
    assert "👍🏽 数" in json.dumps(json.loads(done.stdout.decode("utf-8")), ensure_ascii=False)
    assert b"UnicodeEncodeError" not in course("hint", "0.1", PYTHONIOENCODING=encoding).stderr
