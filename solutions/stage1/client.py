"""Exercise 1.4: a client that says what went wrong."""

import httpx


class ChatError(Exception):
    """The chat server gave no answer. `str(error)` says why."""


def ask(base_url, text, *, timeout_s=60.0):
    """Send `text` to a chat server and return its answer.

    An ordinary function: you can call it in a script, and in a notebook, where an event loop is
    already running. Each call sends exactly one request, `POST {base_url}/chat` with the body
    {"text": text}, and expects 200 {"result": "..."}.

    Args:
        base_url: the server's address, such as "http://127.0.0.1:8000". It may end with a slash.
        text: what the user says.
        timeout_s: how many seconds the server may stay silent.

    Returns:
        The `result` string.

    Raises:
        ChatError:
            - the server answers with a 4xx or 5xx. The message contains the status code and what
              the server said: `detail` if it is text, every `msg` of a 422, or else the body.
            - there is no server at that address. The message contains `base_url`, with or without
              the slash at its end.
            - the server sends nothing for `timeout_s` seconds, or the connection breaks.
            - the answer is not the expected JSON. (Unspecified: JSON that is nested too deeply for
              Python to read.)

    Example:
        >>> ask("http://127.0.0.1:8000", "你好")
        '你好！有什么我能帮助你的吗？'
    """
    url = base_url.rstrip("/") + "/chat"
    try:
        response = httpx.post(url, json={"text": text}, timeout=timeout_s)
    except httpx.ConnectError as error:
        raise ChatError(f"There is no server at {base_url}: {error}") from error
    except httpx.TimeoutException as error:
        raise ChatError(f"{base_url} sent nothing for {timeout_s} seconds") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ChatError(f"The request to {base_url} failed: {error}") from error

    if response.status_code != 200:
        raise ChatError(f"{base_url} answered {response.status_code}: {_words(response)}")
    try:
        result = response.json()["result"]
    except (ValueError, KeyError, TypeError):
        result = None
    if not isinstance(result, str):
        raise ChatError(f'{base_url} did not answer {{"result": "..."}} but: {response.text}')
    return result


def _words(response):
    """What the server says about its error."""
    try:
        detail = response.json()["detail"]
        if isinstance(detail, str):
            return detail
        return "; ".join(error["msg"] for error in detail)
    except (ValueError, KeyError, TypeError):
        return response.text
