"""course doctor: each thing that can be broken is found, with the line that fixes it."""

import importlib.metadata
import io
import json
import os
import shutil
import sys
from collections import namedtuple

import pytest
from rich.console import Console

from course import doctor, lab
from course.doctor import Finding

Disk = namedtuple("Disk", "total used free")


def broken(look):
    finding = look()
    assert not finding.ok, finding
    assert finding.mend and "\n" not in finding.what + finding.mend
    return finding


def well(look):
    finding = look()
    assert finding.ok, finding
    return finding


def test_nothing_that_a_check_needs_is_broken_here():
    # the kernel spec is left out: tests also run in environments that have never opened a notebook
    for look in (doctor._environment, doctor._versions, doctor._loopback, doctor._disk):
        well(look)


def test_everything_is_looked_at_even_if_one_look_fails(monkeypatch):
    def explode():
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(doctor, "_kernel", explode)
    findings = doctor.diagnose()
    assert len(findings) == 9
    (failed,) = [each for each in findings if "no such thing" in each.what]
    assert "the cause is unknown" in failed.what
    assert not failed.ok and failed.mend and "and more" not in failed.what


# the environment


def installed_from(monkeypatch, origin):
    class Installed:
        def read_text(self, name):
            return origin

    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [Installed()])


def test_another_copy_of_the_course(monkeypatch, tmp_path):
    installed_from(monkeypatch, json.dumps({"url": tmp_path.as_uri()}))
    finding = broken(doctor._environment)
    assert str(tmp_path) in finding.what and sys.executable in finding.what


def test_a_folder_with_a_blank_and_chinese_in_its_name_is_recognised(monkeypatch, tmp_path):
    folder = tmp_path / "my 课程"
    installed_from(monkeypatch, json.dumps({"url": folder.as_uri()}))
    monkeypatch.setattr(doctor, "ROOT", folder)
    well(doctor._environment)


@pytest.mark.parametrize("origin", [None, "{}", "not JSON"])
def test_an_environment_without_this_course(monkeypatch, tmp_path, origin):
    installed_from(monkeypatch, origin)
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    assert "setup" in broken(doctor._environment).mend
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    assert broken(doctor._environment).mend == f'source "{tmp_path}/.venv/bin/activate"'


# the kernel


def test_no_kernel(monkeypatch):
    monkeypatch.setattr(lab, "KERNEL", "never-installed")
    assert "--install-kernel" in broken(doctor._kernel).mend


def test_a_kernel_of_another_environment(monkeypatch):
    monkeypatch.setattr(lab, "kernel_python", lambda: "/opt/other/bin/python")
    assert "/opt/other/bin/python" in broken(doctor._kernel).what


def test_two_environments_over_one_python_are_told_apart(monkeypatch, tmp_path):
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert not lab.is_this_interpreter(str(other))
    assert lab.is_this_interpreter(sys.executable)


def test_one_python_has_several_names(monkeypatch, tmp_path):
    for name in ("python", "python3"):
        (tmp_path / name).symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    assert lab.is_this_interpreter(str(tmp_path / "python"))


# versions


def with_versions(monkeypatch, **versions):
    real = importlib.metadata.version

    def version(name):
        found = versions.get(name, real(name) if name not in versions else None)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_another_version_is_named_beside_the_pinned_one(monkeypatch):
    with_versions(monkeypatch, fastapi="0.1.0")
    assert f"fastapi is 0.1.0, not {doctor.pins()['fastapi']}" in broken(doctor._versions).what


def test_a_build_s_own_label_is_no_other_version(monkeypatch):
    with_versions(monkeypatch, torch=f"{doctor.pins()['torch']}+cu130")
    assert doctor.wrong_versions() == []


def test_only_what_the_course_needs_can_be_missing(monkeypatch):
    with_versions(monkeypatch, httpx=None, modelscope=None)
    assert doctor.wrong_versions() == ["httpx is missing"]


def test_a_long_list_stays_one_line(monkeypatch):
    monkeypatch.setattr(doctor, "wrong_versions", lambda: [f"p{n} is missing" for n in range(50)])
    assert broken(doctor._versions).what.endswith("and 47 more")


# the computer


# the discard port: nothing listens there
@pytest.mark.parametrize(
    ("name", "proxy"), [("HTTP_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", "socks5://127.0.0.1:9")]
)
def test_a_proxy_that_swallows_requests_to_this_computer(monkeypatch, name, proxy):
    for other in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, proxy)
    finding = broken(doctor._loopback)
    assert "proxy" in finding.what and "NO_PROXY" in finding.mend
    name, value = finding.mend.split(" ")[1].split("=")
    monkeypatch.setenv(name, value)
    well(doctor._loopback)


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Disk(10**12, 10**12, 1000))
    assert "0.0 GB" in broken(doctor._disk).what


def test_a_folder_of_someone_else_s(monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert "chown" in broken(doctor._disk).mend


def test_more_threads_than_one(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert broken(doctor._threads).mend.endswith("OMP_NUM_THREADS=1")


def test_a_system_that_cannot_fork(monkeypatch):
    monkeypatch.delattr(os, "fork", raising=False)
    assert "cannot fork" in well(doctor._fork_server).what


@pytest.mark.skipif(not hasattr(os, "fork"), reason="NOT TESTED: this system has no fork server")
def test_a_fork_server_that_does_not_start(monkeypatch):
    from course.grading import forkserver

    def refuse():
        raise forkserver.NoForkServer("the grader did not start: no space left")

    monkeypatch.setattr(forkserver, "connect", refuse)
    assert "no space left" in broken(doctor._fork_server).what


def test_no_browser_is_only_a_note(monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert well(doctor._browser).mend
    monkeypatch.setenv("CHROMIUM", "/opt/my/chromium")
    assert "/opt/my/chromium" in well(doctor._browser).what


# the model


def test_a_model_that_would_serve_noise(monkeypatch, tmp_path):
    from course.qwen import TINY

    folder = tmp_path / "untied"
    shutil.copytree(TINY, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    monkeypatch.setenv("COURSE_MODEL", str(folder))
    assert "weights are missing, and would be filled with random numbers" in broken(doctor._model).what


def test_a_model_answers():
    assert "你好" in well(doctor._model).what


def test_a_model_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_MODEL", str(tmp_path / "nowhere"))
    finding = broken(doctor._model)
    assert "nowhere" in finding.what and "COURSE_MODEL" in finding.mend


def test_a_tiny_model_with_damaged_weights(monkeypatch, tmp_path):
    from course.qwen import TINY, models

    damaged = shutil.copytree(TINY, tmp_path / "tiny")
    (damaged / "model.safetensors").write_bytes(b"cut off")
    monkeypatch.delenv("COURSE_MODEL", raising=False)
    monkeypatch.setattr(models, "TINY", damaged)
    assert broken(doctor._model).mend == "git checkout -- course/qwen/tiny"


def test_a_model_that_says_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "_answer", lambda path, text: "")
    assert "gives no answer" in broken(doctor._model).what


# what is shown


def shown(findings):
    page = io.StringIO()
    well = doctor.show(findings, Console(file=page, width=40))
    return well, page.getvalue()


def test_problems_are_marked_in_words_and_mends_are_not_wrapped():
    command = "python -m pip install " + "x" * 100
    all_well, page = shown([Finding(True, "fine"), Finding(False, "the [bold] disk", command)])
    assert not all_well
    assert "  ok   fine\n" in page and "  FIX  the [bold] disk\n" in page
    assert f"run: {command}\n" in page and "Problems found: 1." in page


def test_notes_are_no_problems():
    all_well, page = shown([Finding(True, "no Chromium", "apt-get install chromium")])
    assert all_well
    assert "optional: apt-get install chromium" in page and "All is well" in page


def test_the_doctor_starts_without_torch():
    code = "import sys, course.doctor; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
