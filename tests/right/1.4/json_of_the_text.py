# a right answer: it parses the text, in which bytes that are no UTF-8 were replaced
import json
from http import HTTPStatus

import httpx


class ChatError(Exception):
    def __init__(self, base_url, why):
        super().__init__(f"{base_url}: {why}")


def ask(base_url, text, *, timeout_s=60.0):
    def gave_up(why):
        return ChatError(base_url, why)

    try:
        with httpx.Client(timeout=timeout_s) as client:
            response = client.post(base_url.removesuffix("/") + "/chat", json=dict(text=text))
    except httpx.RequestError as error:
        raise gave_up(repr(error)) from None
    try:
        data = json.loads(response.text)
    except json.JSONDecodeError:
        data = None
    if response.status_code == HTTPStatus.OK:
        match data:
            case {"result": str(result)}:
                return result
        raise gave_up(f"no result in {response.text}")
    match data:
        case {"detail": str(words)}:
            pass
        case {"detail": [{"msg": _}, *_] as problems}:
            words = ", ".join(problem["msg"] for problem in problems)
        case _:
            words = response.text
    raise gave_up(f"{response.status_code} {words}")
