# caught by: test_a_slow_server_is_waited_for | says: timeout_s is how long the server may send nothing
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as DeadlineError

import httpx


class ChatError(Exception):
    pass


def ask(base_url, text, *, timeout_s=60.0):
    url = base_url.rstrip("/") + "/chat"
    pool = ThreadPoolExecutor(1)
    future = pool.submit(httpx.post, url, json={"text": text}, timeout=timeout_s)
    try:
        response = future.result(timeout=timeout_s)
    except (httpx.HTTPError, DeadlineError, TimeoutError) as error:
        raise ChatError(f"no answer from {base_url}: {error!r}") from error
    finally:
        pool.shutdown(wait=False)
    if response.status_code >= 400:
        raise ChatError(f"{response.status_code}: {words(response)}")
    try:
        result = response.json()["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ChatError(f"no result in {response.text!r}") from error
    if not isinstance(result, str):
        raise ChatError(f"no text: {result!r}")
    return result


def words(response):
    try:
        detail = response.json()["detail"]
        return detail if isinstance(detail, str) else "; ".join(each["msg"] for each in detail)
    except (ValueError, KeyError, TypeError):
        return response.text
