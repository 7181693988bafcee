# caught by: test_other_200s_are_chat_errors | says: JSONDecodeError comes out of ask
import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    url = base_url.rstrip("/") + "/chat"
    try:
        response = httpx.post(url, json={"text": text}, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise ChatError(f"No answer from {base_url}: {error!r}") from error
    if response.status_code >= 400:
        raise ChatError(f"{response.status_code}: {words(response)}")
    data = response.json()
    result = data["result"] if isinstance(data, dict) and "result" in data else None
    if not isinstance(result, str):
        raise ChatError(f"Not a text: {result!r}")
    return result


def words(response):
    try:
        detail = response.json()["detail"]
        if isinstance(detail, str):
            return detail
        return "\n".join(problem["msg"] for problem in detail)
    except (ValueError, KeyError, TypeError):
        return response.text
