"""What strangers may send to the lesson servers: all that their OpenAPI documents allow, and more.

The endpoints are the reference answers; behind them is a model that only echoes.
"""

import itertools
import os
import shutil
import subprocess
import sys
import textwrap

import httpx
import pytest

from course.lessons.server import serve
from course.manifest import find

LIMIT_S = 60

ECHOES = {
    "1.1": """
        def load_chat_model(name_or_path):
            return "the model", "the tokenizer"
        """,
    "1.2": """
        def chat(model, tokenizer, text):
            return text, []
        """,
    "2.1": """
        class ModelHandler:
            def __init__(self, model, tokenizer):
                pass

            async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
                yield prompt
        """,
    "3.6": """
        from sequence import Piece

        class ChatModel:
            def __init__(self, model, tokenizer):
                pass

            async def chat(self, messages, **options):
                yield Piece(messages[-1]["content"], 1, 1, "stop")
        """,
}
REFERENCES = {1: ["1.3"], 2: ["2.2", "2.3", "2.4"], 3: ["3.1", "3.2", "3.3", "3.4", "3.5", "3.7"]}

PATHS = [(1, "/chat", "text"), (2, "/chat", "prompt"), (2, "/chat_stream", "prompt")]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """{stage: its server}"""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_WORK", str(work))
        patch.setenv("COURSE_LIMIT", "100000/minute")
        for id, code in ECHOES.items():
            file = find(id).work_file
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(code))
        for id in itertools.chain(*REFERENCES.values()):
            shutil.copy(find(id).solution_file, find(id).work_file)
        with serve(1) as first, serve(2) as second, serve(3) as third:
            yield {1: first, 2: second, 3: third}
            for server in (first, second, third):
                assert "Traceback" not in server.logs(), server.logs()


@pytest.mark.parametrize("stage", REFERENCES)
def test_nothing_that_the_openapi_document_suggests_is_a_server_error(servers, stage, tmp_path):
    # what JSON Schema allows and the contract need not: 5.0 is an integer
    exclude = ["positive_data_acceptance"]
    if stage == 1:
        # 1.3's contract leaves open what a body that is no JSON is called; FastAPI calls it 400
        exclude.append("status_code_conformance")
    if stage == 3:
        # OpenAI calls it 400 where FastAPI's document says 422; 3.7 leaves open what a lax mode takes
        exclude += ["status_code_conformance", "negative_data_rejection"]
    document = servers[stage].url + "/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", document]
    command += ["--phases=coverage,fuzzing", "--exclude-checks=" + ",".join(exclude)]
    # the same cases in every run
    command += ["--generation-deterministic", "--max-examples=30"]
    hooks = {"SCHEMATHESIS_HOOKS": "openai_errors", "PYTHONPATH": os.path.dirname(__file__)}
    environment = os.environ | (hooks if stage == 3 else {})
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: " in run.stdout and "No issues found" in run.stdout, run.stdout


NO_TEXT = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'"\\ud800"',
    b'{"FIELD": "\\ud800"}',
    b'{"FIELD": "\xed\xa0\x80"}',
    b'{"FIELD": NaN}',
    b'{"FIELD": 1e999}',
    b'{"FIELD": ' + b"1" * 5000 + b"}",
]
"""Half characters, what is no number, numbers too long to read, nothing at all."""


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
@pytest.mark.parametrize(("stage", "path", "field"), PATHS)
def test_what_no_json_can_hold_is_the_clients_mistake(servers, stage, path, field, content_type):
    headers = {"content-type": content_type} if content_type else {}
    for body in NO_TEXT:
        body = body.replace(b"FIELD", field.encode())
        response = httpx.post(servers[stage].url + path, content=body, headers=headers)
        assert 400 <= response.status_code < 500, body[:40]
        assert stage == 1 or response.status_code == 422
        assert response.json()["detail"] and len(response.content) < 500


NOT_ALLOWED = [
    ("", "at least 1 character"),
    ("x" * 4001, "at most 4000 characters"),
    (7, "a valid string"),
    ("x" * 10_000_000, "at most 1,000,000 bytes"),
]


@pytest.mark.parametrize(("stage", "path", "field"), PATHS)
@pytest.mark.parametrize(("text", "words"), NOT_ALLOWED, ids=[words for _, words in NOT_ALLOWED])
def test_what_is_not_allowed_is_refused_in_words(servers, stage, path, field, text, words):
    response = httpx.post(servers[stage].url + path, json={field: text}, timeout=LIMIT_S)
    assert 400 <= response.status_code < 500
    assert words in str(response.json()["detail"]) and len(response.content) < 500


def chunks():
    for _ in range(1000):
        yield b"x" * 10_000


@pytest.mark.parametrize(("stage", "path", "field"), PATHS)
def test_a_body_of_unknown_length_is_not_read_to_its_end(servers, stage, path, field):
    response = httpx.post(servers[stage].url + path, content=chunks(), timeout=LIMIT_S)
    assert response.status_code == 413 and "1,000,000 bytes" in response.text
