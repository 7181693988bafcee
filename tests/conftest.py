"""What the tests share: a real browser for those that need one."""

import os
import signal

import pytest

from course.doctor import find_chromium

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


# One browser for a module, not for the whole run: while playwright's sync API is open, asyncio.run
# refuses to work in this thread, and other modules need it.
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium as playwright's sync Browser; use browser.new_page().

    Without a Chromium the tests that ask for it are skipped.
    """
    executable = find_chromium()
    if executable is None:
        pytest.skip("BROWSER NOT TESTED: no Chromium found. Mend: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, headless=True, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()
