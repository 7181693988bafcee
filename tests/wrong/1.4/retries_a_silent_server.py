# caught by: test_nothing_is_sent_twice | says: ask sends its request again
import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    response = None
    for attempts_left in (2, 1, 0):
        try:
            response = httpx.post(
                f"{base_url.rstrip('/')}/chat", json={"text": text}, timeout=timeout_s
            )
            break
        except httpx.ReadTimeout:
            if not attempts_left:
                raise ChatError(f"{base_url} stayed silent three times") from None
        except httpx.HTTPError as error:
            raise ChatError(f"{base_url} cannot be asked: {error}") from error
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if response.is_error:
        detail = answer.get("detail") if isinstance(answer, dict) else None
        if isinstance(detail, list) and all(isinstance(each, dict) for each in detail):
            detail = ", ".join(each.get("msg", "") for each in detail)
        if not isinstance(detail, str):
            detail = response.text
        raise ChatError(f"{response.status_code}: {detail}")
    if not isinstance(answer, dict) or not isinstance(answer.get("result"), str):
        raise ChatError(f"{base_url} answered {response.text!r}")
    return answer["result"]
