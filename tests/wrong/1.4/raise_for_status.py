# caught by: test_the_error_says_what_the_server_said, test_other_200s_are_chat_errors | says: the ChatError does not contain what the server said
import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    try:
        r = httpx.post(f"{base_url.rstrip('/')}/chat", json={"text": text}, timeout=timeout_s)
        r.raise_for_status()
        return r.json()["result"]
    except httpx.HTTPError as e:
        raise ChatError(f"{base_url}: {e}")
