# caught by: test_no_server_is_a_chat_error | says: include base_url
import httpx


class ChatError(Exception):
    def __init__(self, status, words):
        self.status, self.words = status, words
        super().__init__(f"{status}: {words}" if status else "connection failed")


def ask(base_url, text, *, timeout_s=60.0):
    try:
        response = httpx.post(
            base_url.rstrip("/") + "/chat", json={"text": text}, timeout=timeout_s
        )
    except httpx.RequestError as error:
        raise ChatError(None, str(error)) from error
    try:
        data = response.json()
    except ValueError:
        data = None
    if response.is_success and isinstance(data, dict) and isinstance(data.get("result"), str):
        return data["result"]
    detail = data.get("detail") if isinstance(data, dict) else None
    if isinstance(detail, list):
        detail = " / ".join(each.get("msg", "") for each in detail if isinstance(each, dict))
    words = detail if detail and isinstance(detail, str) else response.text
    raise ChatError(response.status_code, words)
