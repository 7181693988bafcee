# caught by: test_a_4xx_or_5xx_is_a_chat_error, test_no_server_is_a_chat_error, test_a_broken_connection_is_a_chat_error, test_other_200s_are_chat_errors, test_a_silent_server_is_given_up | says: the caller only expects ChatError
import httpx

ChatError = ValueError


def ask(base_url, text, *, timeout_s=60.0):
    try:
        response = httpx.post(
            base_url.rstrip("/") + "/chat", json={"text": text}, timeout=timeout_s
        )
    except httpx.HTTPError as error:
        raise ChatError(f"{base_url}: {error}") from error
    try:
        data = response.json()
    except ValueError:
        data = {}
    if not isinstance(data, dict):
        data = {}
    if response.status_code == 200 and isinstance(data.get("result"), str):
        return data["result"]
    words = response.text
    if isinstance(data.get("detail"), str):
        words = data["detail"]
    elif response.status_code == 422 and isinstance(data.get("detail"), list):
        words = [each["msg"] for each in data["detail"] if "msg" in each] or words
    raise ChatError(f"{response.status_code} {words}")
