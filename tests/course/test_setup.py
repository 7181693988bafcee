"""The two commands: make lab and make test; their pins; conda's way; what the README promises."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from course import cli, doctor, lab
from course.manifest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def requirements(lines):
    return [Requirement(line) for line in lines]


def constraints():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return requirements(line for line in lines if line and not line.lstrip().startswith("#"))


# pins


def test_every_dependency_is_pinned():
    asked = requirements(sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"]))
    pinned = {canonicalize_name(each.name) for each in constraints()}
    assert {canonicalize_name(each.name) for each in asked} <= pinned


def test_pins_are_exact_and_allowed_by_the_project():
    allowed = {canonicalize_name(each.name): each.specifier for each in requirements(PROJECT["dependencies"])}
    for pin in constraints():
        (only,) = pin.specifier
        assert only.operator == "==" and "*" not in only.version, pin
        assert allowed.get(canonicalize_name(pin.name), SpecifierSet()).contains(only.version), pin


def test_each_package_has_one_pin_on_this_system():
    here = [canonicalize_name(each.name) for each in constraints() if each.marker is None or each.marker.evaluate()]
    assert sorted(set(here)) == sorted(here)


def test_everything_that_the_course_needs_is_pinned_down_to_the_last_package():
    from importlib.metadata import PackageNotFoundError, requires

    waiting = [Requirement(f"{PROJECT['name']}")]
    seen, loose = set(), set()
    pinned = doctor.pins()
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        if key[0] not in pinned and key[0] != PROJECT["name"]:
            loose.add(key[0])
        try:
            lines = requires(wanted.name) or []
        except PackageNotFoundError:
            # left out by a build of torch that is for CPUs alone
            continue
        for need in requirements(lines):
            extras = [*wanted.extras, ""]
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(need)
    assert len(seen) > 100
    assert not loose


def test_what_is_installed_is_what_is_pinned():
    assert doctor.wrong_versions() == []


# conda


def test_conda_gets_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert environment["name"] == PROJECT["name"]
    python, pip, through_pip = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e ."]}


# README


def test_the_readme_names_only_commands_that_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.M))
    assert {"lab", "setup", "test", "serve", "bench"} <= named <= targets
    named = set(re.findall(r"(?:^    (?:COURSE_MODEL=\S+ )?|`)course ([a-z0-9-]+)", readme, re.M))
    assert named == set(typer.main.get_command(cli.app).commands)


def test_ci_runs_the_readme_s_test_command():
    assert (ROOT / ".ci" / "run").read_text("utf-8").rstrip().endswith("\nexec make test")


# make, with a Python that only plays at making environments

FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >> log ;;
    "-m pip") echo pip "$@" >> log; echo "ERROR: no network"; exit ${PIP_EXIT:-0} ;;
    "-m "*) shift; echo "$@" >> log ;;
    *) exec "REAL" "$@" ;;
esac
"""
OLD_PYTHON = """#!/bin/sh
case "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac
"""
PYTHON_WITHOUT_VENV = """#!/bin/sh
case "$2" in *ensurepip*) exit 1 ;; *) exec "REAL" "$@" ;; esac
"""
TOOLS = ("bash", "sh", "cat", "cp", "rm", "mkdir", "touch", "awk", "tee", "grep", "dirname")


class Checkout:
    """A copy of what the set-up reads, in a world with few programs."""

    def __init__(self, folder, tools):
        self.folder, self.tools = folder, tools
        for path in (folder, tools):
            path.mkdir()
        for name in ("Makefile", "setup.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, folder)
        for name in TOOLS:
            (tools / name).symlink_to(shutil.which(name))

    def python(self, name, script):
        path = self.tools / name
        path.write_text(script.replace("REAL", sys.executable))
        path.chmod(0o755)

    def make(self, *arguments, **environment):
        """Runs make; returns its exit code, what it printed, what the fake Python was told to do."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        done = subprocess.run(
            [shutil.which("make"), *arguments],
            cwd=self.folder,
            env={"PATH": str(self.tools), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = log.read_text().splitlines() if log.exists() else []
        return done.returncode, done.stdout, [line.split(" -")[0] for line in told]


SET_UP = ["pip", "course.lab"]
ALL_NEW = ["venv", *SET_UP]


@pytest.fixture
def checkout(tmp_path):
    if os.name != "posix" or shutil.which("make") is None:
        pytest.skip("NOT TESTED: make is for Linux and macOS")
    checkout = Checkout(tmp_path / "a course", tmp_path / "tools")
    checkout.python("python3", FAKE_PYTHON)
    return checkout


def test_the_first_run_sets_up_and_the_second_starts_at_once(checkout):
    code, printed, told = checkout.make("lab")
    assert (code, told) == (0, [*ALL_NEW, "course.lab"]), printed
    code, printed, told = checkout.make("lab", "LAB_ARGS=--port=9999")
    assert (code, told) == (0, ["course.lab"]), printed


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_new_pins_are_installed_into_the_environment_that_is_there(checkout, changed):
    checkout.make("setup")
    stamp = (checkout.folder / ".venv/.installed").stat().st_mtime
    os.utime(checkout.folder / changed, (stamp + 1, stamp + 1))
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, SET_UP), printed


def test_extras_are_brought_into_the_environment_that_is_there(checkout):
    checkout.make("setup")
    code, printed, told = checkout.make("setup", "EXTRAS=ray,peers")
    assert (code, told) == (0, SET_UP), printed
    asked = (checkout.folder / "log").read_text().splitlines()[0]
    assert asked.endswith("-c constraints.txt -e .[ray,peers]"), asked
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, []), printed


def test_an_install_that_was_cut_off_is_started_over(checkout):
    code, printed, told = checkout.make("setup", PIP_EXIT="1")
    assert code != 0 and told == ["venv", "pip"]
    assert "ERROR: no network" in printed and "Again: make setup" in printed
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, ALL_NEW), printed


def test_an_environment_without_its_python_is_made_again(checkout):
    checkout.make("setup")
    (checkout.folder / ".venv/bin/python").unlink()
    (checkout.folder / ".venv/.installed").unlink()
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, ALL_NEW), printed


def test_an_environment_that_was_moved_is_made_again(checkout):
    checkout.make("setup")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, ALL_NEW), printed


def test_a_newer_python_is_found_beside_one_that_is_too_old(checkout):
    checkout.python("python3", OLD_PYTHON)
    checkout.python("python3.12", FAKE_PYTHON)
    code, printed, told = checkout.make("setup")
    assert (code, told) == (0, ALL_NEW), printed


@pytest.mark.parametrize(
    ("script", "asked", "words"),
    [
        (OLD_PYTHON, {}, "Python 3.11 to 3.14 is needed (python3 is 3.9)"),
        (FAKE_PYTHON, {"PYTHON": "python9"}, "(python9 is not found)"),
        (PYTHON_WITHOUT_VENV, {}, "apt-get install python3."),
    ],
)
def test_a_python_that_does_not_do_gets_one_clear_line(checkout, script, asked, words):
    checkout.python("python3", script)
    code, printed, told = checkout.make("lab", **asked)
    first, *rest = printed.splitlines()
    assert code != 0 and told == []
    assert words in first
    # make's own last word
    assert len(rest) == 1 and rest[0].startswith("make:"), printed
    assert not (checkout.folder / ".venv").exists()


# JupyterLab


def test_lab_is_for_this_computer_alone():
    assert "--ip=127.0.0.1" in lab.lab_arguments([])


@pytest.mark.parametrize(("language", "first"), [("en", "00_start_here"), ("zh", "zh/00_start_here")])
def test_lab_opens_the_first_notebook_in_the_reader_s_language(language, first, monkeypatch):
    monkeypatch.setenv("COURSE_LANG", language)
    assert (ROOT / "notebooks" / f"{first}.ipynb").is_file()
    assert f"--LabApp.default_url=/lab/tree/notebooks/{first}.ipynb" in lab.lab_arguments([])


def test_an_option_for_lab_takes_the_place_of_the_course_s_own():
    arguments = lab.lab_arguments(["--ip=0.0.0.0"])
    # JupyterLab refuses an option that is given twice
    assert [each for each in arguments if each.startswith("--ip")] == ["--ip=0.0.0.0"]


@pytest.mark.skipif(sys.platform != "linux", reason="NOT TESTED: other systems always have a browser")
def test_lab_opens_no_browser_where_there_is_no_screen(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "--no-browser" in lab.lab_arguments([])


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_lab_runs_as_root_only_for_root(monkeypatch, user, allowed):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert ("--allow-root" in lab.lab_arguments([])) is allowed


def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    lab.install_kernel()
    assert lab.is_this_interpreter(lab.kernel_python())
