"""`course check --url`: the tests that need nothing but an address, against servers by script. Against the course's own
they are run where those are started: test_stage2_server, test_stage3_server and test_stage4_server.
"""

import pytest
from audit_server import serving
from commands import course, course_here

from course import grading
from course.grading.elsewhere import base_url_of
from course.manifest import exercises, find


@pytest.mark.parametrize(
    ("wrong", "by"),
    [
        ("", []),
        ("answer-shape", ["test_an_answer_in_one_piece"]),
        ("stream-shape", ["test_done_is_the_last_event"]),
        ("stream-usage", ["test_usage_of_a_stream_does_not_come_unasked"]),
        ("unknown-model", ["test_another_model_is_a_404", "test_the_official_client_raises_its_own_errors"]),
    ],
)
def test_a_wrong_server_fails_by_the_test_for_it(wrong, by):
    with serving(wrong) as url:
        verdict = grading.check_elsewhere("3.7", url)
    failed = [test.id for test in verdict.tests if test.status in ("failed", "timeout")]
    assert failed == by, "\n".join(verdict.full_lines())
    assert verdict.right_elsewhere is (by == []) and not verdict.passed
    said = str(verdict)
    ran = sum(bool(test.elsewhere) for test in find("3.7").tests)
    assert f"{ran - len(by)} of {ran} tests passed at {base_url_of(url)}, not counted" in said
    if by:
        assert f"FAILED: {find('3.7').test(by[0]).title}" in said and f"test_3_7_chat_completions.py::{by[0]}" in said


def test_the_verdict_in_a_terminal_says_that_it_is_not_counted(tmp_path):
    with serving("stream-shape") as url:
        done = course("check", "3.7", "--url", url, COURSE_WORK=str(tmp_path))
    assert done.returncode == 1 and done.stderr == "", done
    assert len(done.stdout.splitlines()) <= 12
    assert "not counted" in done.stdout.splitlines()[0]
    left_out = sum(not test.elsewhere for test in find("3.7").tests)
    assert (
        f"{left_out} tests were not run, because they need your file. To run every test: course check 3.7"
        in done.stdout
    )
    assert "the stream ends without data: [DONE]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["3.7", "--url", "http://127.0.0.1:9/v1"], "No server answers at http://127.0.0.1:9: "),
        (["3.7", "--url", "ftp://127.0.0.1"], "ftp://127.0.0.1 is not a URL such as http://127.0.0.1:8000"),
        (["3.7", "--url", "http:///"], "http:/// is not a URL such as http://127.0.0.1:8000"),
        (
            ["3.7", "--url", "http://192.0.2.1"],
            "will be sent to http://192.0.2.1.\nNothing was sent. To skip this question, add --yes.",
        ),
        (
            ["1.3", "--url", "http://127.0.0.1:9"],
            "1.3 cannot be checked with --url: its tests need your file."
            " Exercises that can be checked this way: 2.2, 3.7.",
        ),
        (["--stage", "3", "--url", "http://127.0.0.1:9"], "--url works with one exercise"),
        (["2.2", "3.7", "--url", "http://127.0.0.1:9"], "--url works with one exercise"),
        (["3.7", "--file", str(find("3.7").solution_file), "--url", "http://127.0.0.1:9"], "--url works with one"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, says, tmp_path):
    done = course_here("check", *arguments, COURSE_WORK=str(tmp_path))
    assert done.returncode == 2 and done.stdout == "" and says in done.stderr, done
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("https://example.com/qwen/v1", "https://example.com/qwen"),
    ],
)
def test_an_address_may_be_written_in_these_ways(url, base):
    assert base_url_of(url) == base


def test_which_tests_can_be_run_is_said_in_one_form():
    for each in exercises().values():
        for test in each.tests:
            assert test.elsewhere in ("", "all") or test.elsewhere.startswith("everything except "), test.id
