"""The room against answers that misbehave: each gets a kind verdict, and nothing of it runs on."""

import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from course.grading import check
from course.grading.inside import plain
from course.manifest import find

GOOD = """
def count_tokens(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
"""


@pytest.fixture
def verdict_on(tmp_path, monkeypatch):
    """Checks a text as the answer to 0.1 (or another exercise), with a short limit for hangs."""
    monkeypatch.setenv("COURSE_LIMIT_S", "3")

    def verdict_on(source, id="0.1", only=None):
        file = tmp_path / "answer.py"
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return check(id, file, only=only)

    return verdict_on


def first_test(id="0.1"):
    """For `only`, where more tests would take as long again and find the same."""
    return [find(id).tests[0].id]


def refused(verdict, *phrases, status="failed"):
    """The verdict is not passed, says the phrases, and shows no raw traceback."""
    wrong = verdict.first_wrong
    assert not verdict.passed and wrong.status == status, verdict
    for phrase in phrases:
        assert phrase in wrong.message, verdict
    assert "Traceback" not in str(verdict)
    assert len(verdict.lines()) <= 12
    assert all(test.status != "passed" for test in verdict.tests), verdict


def running(mark):
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if mark in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def test_a_good_answer_passes(verdict_on):
    verdict = verdict_on(GOOD)
    assert verdict.passed and verdict.score == verdict.max_score == 3


def test_only_the_tests_that_are_asked_for_run(tmp_path):
    file, ran, wanted = tmp_path / "answer.py", [], [find("0.1").tests[1].id]
    file.write_text(GOOD, encoding="utf-8")
    verdict = check("0.1", file, ran.append, only=wanted)
    assert verdict.passed and [test.id for test in verdict.tests] == ran == wanted


def test_notes_can_be_read_while_a_scene_adds_to_them():
    notes, done = {}, threading.Event()

    def scene():
        for number in range(200_000):
            notes[str(number)] = number
            if done.is_set():
                break

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    adding = threading.Thread(target=scene)
    adding.start()
    try:
        while adding.is_alive() and len(notes) < 50_000:
            plain(notes)
    finally:
        done.set()
        sys.setswitchinterval(interval)
        adding.join()


def test_does_not_parse(verdict_on):
    refused(verdict_on("def count_tokens(tokenizer, text:\n    return 1\n"), "does not parse", "line 1")


def test_fails_at_import(verdict_on):
    verdict = verdict_on("import no_such_package\n" + GOOD)
    refused(verdict, "fails on import", "no_such_package", "line 1")
    assert [test.status for test in verdict.tests[1:]] == ["not_run", "not_run"]


def test_a_name_is_missing(verdict_on):
    refused(verdict_on("def count(tokenizer, text):\n    return 1\n"), "does not define `count_tokens`")


def test_another_signature(verdict_on):
    refused(
        verdict_on("def count_tokens(text):\n    return 1\n"),
        "signature",
        "count_tokens(tokenizer, text)",
        "count_tokens(text)",
    )


def test_no_file(tmp_path):
    refused(check("0.1", tmp_path / "missing.py"), "does not exist yet", "course reset 0.1")


@pytest.mark.parametrize("place", ["import", "call"])
@pytest.mark.parametrize("end", ["import os; os._exit(0)", "import sys; sys.exit(0)", "exit()"])
def test_ends_the_process(verdict_on, place, end):
    if place == "import":
        refused(verdict_on(f"{end}\n{GOOD}"), "process")
    else:
        refused(verdict_on(f"def count_tokens(tokenizer, text):\n    {end}\n"), "process")


def test_endless_loop_at_import(verdict_on):
    verdict = verdict_on(f"n = 0\nwhile True:\n    n += 1\n{GOOD}")
    refused(verdict, "hangs", "line", status="timeout")


def test_endless_loop_in_a_call(verdict_on):
    verdict = verdict_on("def count_tokens(tokenizer, text):\n    while True:\n        text = text\n")
    refused(verdict, "hangs", "in count_tokens", status="timeout")


def test_endless_loop_in_native_code_has_a_line_too(verdict_on):
    verdict = verdict_on("def count_tokens(tokenizer, text):\n    return sum(iter(int, 1))\n", only=first_test())
    refused(verdict, "hangs", "line 2, in count_tokens", status="timeout")


def test_endless_wait_in_a_coroutine_shows_the_await_chain(verdict_on):
    verdict = verdict_on(
        """
        import asyncio

        async def inner():
            await asyncio.Event().wait()

        async def outer():
            await inner()

        def count_tokens(tokenizer, text):
            asyncio.run(outer())
        """,
        only=first_test(),
    )
    refused(verdict, "hangs", "in outer: await inner() ->", "in inner:", status="timeout")


def test_a_hundred_megabytes_of_output(verdict_on):
    began = time.monotonic()
    verdict = verdict_on(GOOD.replace("    return", "    for _ in range(1000): print('x' * 100_000)\n    return"))
    assert verdict.passed, verdict
    assert time.monotonic() - began < 60


def test_children_are_ended(verdict_on):
    mark = f"course-test-child-{time.time_ns()}"
    verdict = verdict_on(
        f"""
        import os, subprocess, sys

        sleep = [sys.executable, "-c", "import time; time.sleep(600)", "{mark}"]
        subprocess.Popen(sleep)
        subprocess.Popen(sleep, start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sleep[0], sleep)
            os._exit(0)

        def count_tokens(tokenizer, text):
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])
        """
    )
    assert verdict.passed, verdict
    assert running(mark) == []


def test_threads_that_never_end_do_not_matter(verdict_on):
    verdict = verdict_on(GOOD + "\nimport threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()\n")
    assert verdict.passed, verdict


def test_an_object_that_equals_everything(verdict_on):
    verdict = verdict_on(
        """
        class Anything(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            __class__ = int

        def count_tokens(tokenizer, text):
            return Anything()
        """
    )
    refused(verdict, "not the number of tokens")


def test_a_patched_pytest_and_a_patched_grader_change_nothing(verdict_on):
    verdict = verdict_on(
        """
        import builtins, sys
        import pytest
        import course.grading.inside as inside, course.grading.mistakes as mistakes
        import course.grading.runner as runner, course.grading.room as room

        mistakes.require = lambda *a, **k: None
        mistakes.fail = pytest.fail = lambda *a, **k: None
        runner._Results.note = lambda *a: None
        room.Room.play = lambda *a, **k: {"counts": [], "expected": []}
        for module in list(sys.modules.values()):
            if hasattr(module, "require"):
                module.require = lambda *a, **k: None
        builtins.AssertionError = type("Quiet", (Exception,), {})

        def count_tokens(tokenizer, text):
            return -1
        """
    )
    refused(verdict, "not the number of tokens")


def test_a_forged_report(verdict_on):
    verdict = verdict_on(
        """
        import json, os

        names = [
            "test_counts_what_the_tokenizer_makes",
            "test_counts_chinese_and_repeated_tokens",
            "test_an_empty_text_has_no_tokens",
        ]
        lines = [json.dumps({"test": n, "status": "passed", "message": "", "detail": ""}) for n in names]
        lines.append(json.dumps({"finished": True}))
        for fd in range(1, 256):
            try:
                os.write(fd, ("\\n".join(lines) + "\\n").encode())
            except OSError:
                pass
        for name in ("report.json", "junit.xml", "verdict.json"):
            with open(name, "w") as out:
                out.write("\\n".join(lines))

        def count_tokens(tokenizer, text):
            os._exit(0)
        """
    )
    assert not verdict.passed and verdict.score == 0, verdict


def test_a_deleted_working_folder(verdict_on):
    verdict = verdict_on(f"import os, shutil\nshutil.rmtree(os.getcwd())\n{GOOD}")
    assert verdict.passed, verdict


def test_an_error_without_a_text(verdict_on):
    verdict = verdict_on(
        """
        class Silent(BaseException):
            def __str__(self): raise RuntimeError("no")

        def count_tokens(tokenizer, text):
            raise Silent()
        """
    )
    refused(verdict, "Silent", "in count_tokens")


@pytest.mark.parametrize("id", ["0.1", "1.3"])
@pytest.mark.parametrize(
    "before",
    [
        "sys.stdout = sys.stderr = None",
        "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = type('Quiet', (), {'write': len})()",
        "sys.stdout = sys.stderr = io.StringIO()",
        "sys.stdout.close(), sys.stderr.close()",
        "sys.stdout.flush = lambda: 1 / 0",
        "sys.stdout.detach()",
        "os.close(1), os.close(2)",
        "argparse.ArgumentParser().add_argument('--port'), argparse.ArgumentParser().parse_args()",
        "argparse.ArgumentParser().add_argument('file', nargs='?'); assert len(sys.argv) == 1",
        "os.chdir('/')",
    ],
)
def test_the_answers_streams_and_arguments_are_its_own(verdict_on, id, before):
    source = find(id).solution_file.read_text(encoding="utf-8")
    verdict = verdict_on(f"import argparse, io, os, sys\n{before}\n{source}", id)
    assert verdict.passed, verdict


def test_a_room_leaves_no_folder(verdict_on, tmp_path):
    said = tmp_path / "cwd"
    verdict = verdict_on(f"import os\nopen({str(said)!r}, 'w').write(os.getcwd())\n{GOOD}")
    folder = Path(said.read_text(encoding="utf-8")).parent
    assert verdict.passed and folder.name.startswith("serving-qwen-room-")
    assert not folder.exists()


def test_an_asker_who_leaves_ends_the_check(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_LIMIT_S", "60")
    mark = f"course-test-leaver-{time.time_ns()}"
    file = tmp_path / f"{mark}.py"
    started = tmp_path / "started"
    says_its_id = f"import os\nopen({str(started)!r}, 'w').write(f'{{os.getpid()}} ')\n"
    file.write_text(f"{says_its_id}while True: pass\n{GOOD}")
    import subprocess
    import sys

    asker = subprocess.Popen([sys.executable, "-c", f"from course.grading import check; check('0.1', {str(file)!r})"])
    until = time.monotonic() + 120
    while not (started.exists() and started.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    rooms = [psutil.Process(int(started.read_text()))]
    asker.kill()
    asker.wait()
    _, alive = psutil.wait_procs(rooms, timeout=20)
    assert not alive


def test_where_there_is_no_fork_the_verdict_is_the_same(verdict_on, monkeypatch):
    right, wrong = first_test()[0], find("0.1").tests[-1].id
    answer, verdicts = GOOD.replace("return", "return not text or"), []
    for how in ("spawn", ""):
        monkeypatch.setenv("COURSE_START", how)
        tests = verdict_on(answer, only=[right, wrong]).tests
        assert [test.status for test in tests] == ["passed", "failed"], tests
        verdicts.append(tests)
    assert verdicts[0] == verdicts[1]
    monkeypatch.setenv("COURSE_START", "spawn")
    assert verdict_on(GOOD).passed
