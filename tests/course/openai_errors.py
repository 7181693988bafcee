"""Hooks of schemathesis for an OpenAI endpoint: requests name its model, and each 4xx is an error as OpenAI's."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "tiny-qwen"
    return body


@schemathesis.check
def an_error_as_openais(context, response, case):
    if 400 <= response.status_code < 500:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}, error
        assert error["message"] and error["type"] == "invalid_request_error", error
