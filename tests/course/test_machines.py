"""The grader on machines unlike ours: long and odd paths, users without a name, what is installed later."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from course.grading import check, forkserver
from course.grading.environment import temporary_folder
from course.manifest import ROOT, find

SOLUTION = find("0.1").solution_file
LIMIT_S = 120


@pytest.fixture
def own_folder(monkeypatch):
    """TMPDIR is a new folder: no fork server runs there."""
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture(scope="module")
def own_server(tmp_path_factory):
    """A fork server of these tests' own, started by somebody with a long TMPDIR, which it gives, and a setting.

    With that TMPDIR alone it would be everybody's, in /tmp.
    """
    with tempfile.TemporaryDirectory(prefix="course-") as folder, pytest.MonkeyPatch.context() as patch:
        long = tmp_path_factory.mktemp("x" * 100)
        patch.setenv("TMPDIR", str(long))
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(forkserver, "temporary_folder", lambda: Path(folder))
        patch.setenv("COURSE_LIMIT_S", "17")
        patch.delenv("COURSE_LAB", raising=False)  # of the JupyterLab in which the tests run
        forkserver.start()
        patch.delenv("COURSE_LIMIT_S")
        yield long
        forkserver.stop()


@pytest.mark.parametrize("folder", ["x" * 65, "y" * 100, "z" * 200, "a b", "你好" * 12, "a::b [1] $HOME %20 #"])
def test_any_temporary_folder_will_do(own_folder, monkeypatch, folder):
    (own_folder / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own_folder / folder))
    assert len(os.fsencode(forkserver._folder() / "socket")) < 104
    assert temporary_folder().stat().st_mode & 0o777 == 0o700


def test_a_temporary_folder_of_somebody_else_is_refused(own_folder):
    temporary_folder().rmdir()
    elsewhere = own_folder / "elsewhere"
    elsewhere.mkdir()
    link = own_folder / f"serving-qwen-{os.getuid()}"
    link.symlink_to(elsewhere)
    with pytest.raises(forkserver.NoForkServer, match="belongs to another user"):
        forkserver.connect()
    link.unlink()


@pytest.mark.parametrize("name", [None, "x" * 200, "a/b"])
def test_the_users_name_does_not_matter(own_folder, monkeypatch, name):
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
        if name:
            monkeypatch.setenv(variable, name)

    def no_entry(*_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert temporary_folder().parent == own_folder


@pytest.mark.parametrize("name", ["course[1]", "my course::2 你好 $HOME %20 ~#'\"", "--help", "{a,b}*?"])
def test_a_clone_in_a_folder_of_any_name_and_the_output_of_a_check_ends_with_it(own_folder, name):
    clone = own_folder / "clones" / name
    for part in ("course", "solutions/stage0", "tests/stage0", "constraints.txt"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (clone / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, clone / part)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = [sys.executable, "-m", "course.cli", "check", "0.1", "--json", "--file"]
    try:
        # the fork server that it starts must not hold the pipes
        done = subprocess.run(
            [*run, "solutions/stage0/count_tokens.py"],
            capture_output=True,
            cwd=clone,
            env=environment,
            timeout=LIMIT_S,
        )
        verdict = json.loads(done.stdout)
        assert verdict["passed"], verdict
        assert verdict["file"] == "solutions/stage0/count_tokens.py"
    finally:
        end = "from course.grading import forkserver; forkserver.stop()"
        subprocess.run([sys.executable, "-c", end], cwd=clone, env=environment, check=True)


def test_a_check_under_a_long_temporary_folder(own_server, tmp_path):
    answer, said = tmp_path / "answer.py", tmp_path / "cwd"
    code = f"import os\nopen({str(said)!r}, 'w').write(os.getcwd())\n"
    answer.write_text(code + SOLUTION.read_text(encoding="utf-8"), encoding="utf-8")
    verdict = check("0.1", answer)
    assert verdict.passed, verdict
    assert Path(said.read_text()).is_relative_to(own_server)


def test_settings_of_whoever_started_the_fork_server_do_not_stay(own_server, monkeypatch, tmp_path):
    answer = tmp_path / "answer.py"
    answer.write_text("import os\nraise ValueError(os.environ.get('COURSE_LIMIT_S'))\n")
    assert "ValueError: None" in check("0.1", answer).first_wrong.message
    monkeypatch.setenv("COURSE_LIMIT_S", "18")
    assert "ValueError: 18" in check("0.1", answer).first_wrong.message


def test_what_is_installed_later_is_found(own_server, monkeypatch, tmp_path):
    answer = tmp_path / "answer.py"
    answer.write_text(
        "import os, shutil\n"
        "if not shutil.which('a-tool-of-the-test'):\n"
        "    raise FileNotFoundError(os.environ['PATH'])\n" + SOLUTION.read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    assert "FileNotFoundError" in check("0.1", answer).first_wrong.message
    tool = tmp_path / "bin" / "a-tool-of-the-test"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    verdict = check("0.1", answer)
    assert verdict.passed, verdict


def test_the_fork_server_ends_with_the_last_jupyterlab(own_server, monkeypatch):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    labs = [subprocess.Popen(sleep), subprocess.Popen(sleep)]
    try:
        for lab in labs:
            monkeypatch.setenv("COURSE_LAB", str(lab.pid))
            assert check("0.1", SOLUTION).passed
        server = psutil.Process(int((forkserver._folder() / "pid").read_text()))
        labs[0].kill()
        labs[0].wait()
        with pytest.raises(psutil.TimeoutExpired):
            server.wait(3 * forkserver.LOOK_S)
        labs[1].kill()
        labs[1].wait()
        server.wait(LIMIT_S)
    finally:
        for lab in labs:
            lab.kill()
            lab.wait()
    assert not forkserver.is_warm()
    monkeypatch.delenv("COURSE_LAB")
    assert check("0.1", SOLUTION).passed


def test_the_fork_server_outlives_a_terminal(own_server):
    assert check("0.1", SOLUTION).passed
    time.sleep(2 * forkserver.LOOK_S)
    assert forkserver.is_warm()
