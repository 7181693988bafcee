"""What the tests share: a real browser for those that need one."""

import os
import re
import signal

import pytest
from xdist.scheduler import LoadScopeScheduling

from course.doctor import find_chromium

# what these find wrong is shown, as in a test
pytest.register_assert_rewrite("served", "commands", "audit_server")

# the tests compare English texts, whatever the locale here
os.environ["COURSE_LANG"] = "en"

# A shell starts what it runs in the background with Ctrl-C ignored, and all children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# the grader's own: test_walls runs them, through the grader, on the reference answers too
collect_ignore_glob = ["stage*"]

CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def pytest_addoption(parser):
    parser.addoption("--whole", action="store_true", help="wrong answers of the walls take all tests of their exercise")


# not xdist's own loadgroup: its 3.8.0 loses the marks under pytest 9.2
class TogetherWhatShares(LoadScopeScheduling):
    """What shares something slow to make goes to one process: the tests of a module, those of a notebook that was run,
    and 4.4's answers. Any other answer of the walls goes where there is time."""

    def _split_scope(self, nodeid):
        module, name = nodeid.split("::", 1)
        if module.endswith("test_walls.py") and "[4.4" not in name:
            return nodeid
        ran = re.match(r"test_(solved|unsolved)_.*(\[.+\])", name)
        return module + "".join(ran.groups() if ran else ())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return TogetherWhatShares(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Under CI=true a test that is skipped, for whatever reason, fails: there, everything is tested.

    Elsewhere `-ra` in pyproject.toml lists each skipped test with its reason at the end of the run.
    """
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI allows no test: {report.longrepr[-1]}"
    return report


@pytest.fixture(autouse=True)
def _settings_stay():
    """A test that leaves a COURSE_ variable behind changes what later tests of its process see."""
    before = _settings()
    yield
    assert _settings() == before


def _settings():
    return {name: value for name, value in os.environ.items() if name.startswith("COURSE_")}


# One browser for a module, not for the whole run: while playwright's sync API is open, asyncio.run
# refuses to work in this thread, and other modules need it.
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium as playwright's sync Browser; use browser.new_page().

    Without a Chromium the tests that ask for it are skipped.
    """
    executable = find_chromium()
    if executable is None:
        pytest.skip("BROWSER NOT TESTED: no Chromium found. Fix: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, headless=True, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()
