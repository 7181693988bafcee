"""A skipped test is said with its reason; under CI=true it fails."""

import os
import subprocess
import sys

import pytest

from course.manifest import ROOT

PLACES = {
    "PROMETHEUS NOT TESTED": "test_metrics.py::test_promtool_finds_nothing_in_the_scrape",
    "BROWSER NOT TESTED": "test_chat_page.py::test_it_answers_ni_hao",
}


@pytest.mark.parametrize("ci", ["true", ""])
def test_what_a_machine_lacks_is_said_and_fails_in_ci(ci, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CHROMIUM"}
    # neither a browser nor promtool is on this path
    environment |= {"CI": ci, "PATH": str(tmp_path)}
    places = [str(ROOT / "tests" / "course" / place) for place in PLACES.values()]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", *places]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    for said in PLACES:
        [line] = {line for line in done.stdout.splitlines() if said in line and line.startswith(("SKIPPED", "ERROR "))}
        assert line.startswith("ERROR " if ci else "SKIPPED"), done.stdout
    assert done.returncode == (1 if ci else 0), done.stdout
