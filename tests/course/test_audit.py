"""`course audit` on servers that are right, and on ones that are wrong in one point each."""

import asyncio
import json
from xml.etree import ElementTree

import pytest
from audit_server import MODEL, serving
from commands import course, course_here

from course.audit import CHECKS, DOES_NOT_APPLY, FAILED, PASSED, audit
from course.audit.server import MOST_REQUESTS, Server, quote, written


def audited(url):
    server = Server(url, model=MODEL)
    return server, asyncio.run(audit(server))


def test_a_right_server_passes_all():
    with serving() as url:
        server, results = audited(url)
    assert [(each.id, each.sent, each.got) for each in results if each.status != PASSED] == []
    assert server.requests <= MOST_REQUESTS


@pytest.mark.parametrize("wrong", CHECKS)
def test_a_server_that_is_wrong_in_one_point_fails_that_check(wrong):
    with serving(wrong) as url:
        server, results = audited(url)
    assert [each.id for each in results if each.status == FAILED] == [wrong], "\n".join(map(str, results))
    [failed] = [each for each in results if each.id == wrong]
    assert failed.sent and failed.got and failed.why
    assert server.requests <= MOST_REQUESTS


def test_a_quote_from_the_middle_and_a_missing_field_are_recognizable():
    assert [quote("sea and salt", at) for at in (-3, 0, 8)] == ["'sea and salt'", "'sea and salt'", "'... salt'"]
    data = {"role": None, "id": "a", "index": True}
    assert [written(data, name) for name in ("role", "id", "index", "created")] == ["null", "'a'", "true", "missing"]


# the command


def test_the_command_says_what_is_wrong(tmp_path):
    with serving("usage") as url:
        ran = course("audit", url, "--only", "usage", "--only", "models", "--junit", str(tmp_path / "audit.xml"))
    assert ran.returncode == 1, ran.stderr
    said = " ".join(ran.stdout.split())
    assert "failed usage: a non-streamed answer reports how many tokens it used sent POST /chat/completions" in said
    assert " got prompt_tokens " in said and " why Bills " in said
    assert "passed: 1, failed: 1, does not apply: 0" in said and "Failed: usage" in said
    [failure] = ElementTree.parse(tmp_path / "audit.xml").iter("failure")
    assert "the total is not the sum" in failure.get("message")


def test_the_command_prints_json_alone():
    with serving() as url:
        ran = course_here("audit", url, "--only", "models", "--json")
    assert ran.returncode == 0, ran.stderr
    data = json.loads(ran.stdout)
    assert data["passed"] is True and data["model"] == MODEL and data["url"] == url
    assert [(each["id"], each["status"]) for each in data["checks"]] == [("models", "passed")]


def test_what_does_not_apply_says_why():
    with serving("repeatable") as url:
        server = Server(url)
        [result] = asyncio.run(audit(server, ["stream-text"]))
    assert (result.status, server.model) == (DOES_NOT_APPLY, MODEL)
    assert "see `repeatable`" in result.got


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:9/v1"], "No server answers at http://127.0.0.1:9/v1"),
        (["http://127.0.0.1:9/v1", "--only", "nonsense"], "There is no check nonsense. The checks are: models,"),
        (["http://127.0.0.1:9/v1", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["http://192.0.2.1/v1"], "Nothing was sent. To skip this question, add --yes."),
        (["http:///v1"], "http:///v1 is not a URL such as http://127.0.0.1:8000"),
        (["http://[::1/v1"], "http://[::1/v1 is not a URL"),
        (["http://localhost:80000/v1"], "http://localhost:80000/v1 is not a URL"),
    ],
)
def test_the_command_refuses_kindly(arguments, says):
    ran = course_here("audit", *arguments)
    assert ran.returncode == 2 and says in ran.stderr, ran
    assert "Traceback" not in ran.stderr


def test_another_computers_server_is_told_how_many_requests_will_come():
    said = f"Up to {MOST_REQUESTS} requests, for up to 3 minutes, will be sent to http://192.0.2.1"
    assert said in course_here("audit", "http://192.0.2.1/v1").stderr


def test_the_key_is_sent():
    with serving() as url:
        server = Server(url, key="secret", model=MODEL)
        asyncio.run(audit(server, ["models"]))
        assert server.http.headers["authorization"] == "Bearer secret"
