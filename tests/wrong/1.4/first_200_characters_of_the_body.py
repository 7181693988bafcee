# caught by: test_the_error_says_what_the_server_said | says: does not say what the server said
import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    try:
        response = httpx.post(base_url.rstrip("/") + "/chat", json={"text": text}, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise ChatError(f"POST {base_url} failed: {error!r}") from error
    try:
        said = response.json()
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    if response.is_success:
        if isinstance(said.get("result"), str):
            return said["result"]
        raise ChatError(f"an answer without a result: {response.text[:200]}")
    words = said.get("detail")
    if isinstance(words, list):
        words = " / ".join(each["msg"] for each in words if isinstance(each, dict)) or None
    if not isinstance(words, str):
        words = response.text[:200]
    raise ChatError(f"HTTP {response.status_code}: {words}")
