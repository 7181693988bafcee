"""A learner's first minutes, in a real browser: JupyterLab opens, an exercise is solved, the verdict shows."""

import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest

from course import lab
from course.manifest import ROOT, find

FIRST = lab.FIRST_NOTEBOOKS["en"]
NOTEBOOK = ROOT / FIRST
WAIT_MS = 90_000


@pytest.fixture
def address(tmp_path):
    """What `make lab` prints, for a copy of the first notebook and an empty work folder."""
    copy = tmp_path / FIRST
    copy.parent.mkdir()
    shutil.copy(NOTEBOOK, copy)
    own = {
        # settings of whoever runs the tests must not matter
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "COURSE_WORK": str(tmp_path / "work"),
        "COURSE_LANG": "en",
    }
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "course.lab"),
                *("--no-browser", "--port=0", f"--ServerApp.root_dir={tmp_path}"),
            ],
            cwd=tmp_path,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield printed_address(process, tmp_path / "log")
        finally:
            process.terminate()
            process.wait()


def printed_address(process, log):
    while True:
        text = log.read_text("utf-8")
        if found := re.search(r"http://127\.0\.0\.1:\S+token=\S+", text):
            return found[0]
        assert process.poll() is None, text
        time.sleep(0.1)


def test_a_learner_solves_the_first_exercise(browser, address, tmp_path):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    place = next(n for n, cell in enumerate(cells) if cell.source.startswith("#| exercise 0.1"))
    answer = find("0.1").solution_file.read_text("utf-8")
    answer = "#| exercise 0.1\n" + answer[answer.index("def ") :]

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.get_by_text("Serving Qwen | Idle").wait_for()
    assert not page.locator(".Toastify__toast").count()

    run(page, "Kernel", "Restart Kernel and Run All Cells…")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
    page.locator('.course-verdict[data-passed="false"]').first.wait_for()

    # the course's own style sheet: what a cell prints is not broken in mid-word
    printed = page.locator(".jp-OutputArea-output pre").first
    assert printed.evaluate("e => getComputedStyle(e).wordBreak") == "normal"

    stub = page.locator(".jp-CodeCell", has_text="#| exercise 0.1").first
    stub.scroll_into_view_if_needed()
    stub.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(answer)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    page.locator('.course-verdict[data-passed="true"]').first.wait_for()
    page.screenshot(path=tmp_path / "passed.png")
    assert stub.locator(".jp-OutputArea-output").all_inner_texts() == []
    assert cells[place + 1].source == 'check("0.1")'
    assert (tmp_path / "work" / "stage0" / "count_tokens.py").read_text("utf-8").strip() == answer.strip()
    page.close()


def run(page, menu, entry):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry).click()
