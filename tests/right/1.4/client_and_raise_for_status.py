# a right answer: httpx.Client as a context manager, and a chain of raise_for_status
import httpx


class ChatError(Exception):
    """Something between us and the answer went wrong."""


def _explain(response):
    try:
        body = response.json()
    except ValueError:
        return response.text
    match body:
        case {"detail": str(words)}:
            return words
        case {"detail": [*problems]} if response.status_code == 422:
            messages = [problem["msg"] for problem in problems if "msg" in problem]
            return "; ".join(messages) if messages else response.text
    return response.text


def ask(base_url: str, text: str, *, timeout_s: float = 60.0) -> str:
    root = base_url if base_url.endswith("/") else base_url + "/"
    try:
        with httpx.Client(base_url=root, timeout=httpx.Timeout(timeout_s)) as client:
            response = client.post("chat", json={"text": text})
            response.raise_for_status()
            match response.json():
                case {"result": str(result)}:
                    return result
                case other:
                    raise ChatError(f"unexpected answer: {other!r}")
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise ChatError(f"{status} {_explain(error.response)}") from error
    except httpx.HTTPError as error:
        raise ChatError(f"could not reach {base_url}: {error}") from error
    except ValueError as error:
        raise ChatError(f"the answer is not JSON: {error}") from error
