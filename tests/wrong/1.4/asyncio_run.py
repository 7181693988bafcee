# caught by: test_works_in_a_running_event_loop | says: where an event loop already runs
import asyncio

import httpx


class ChatError(Exception):
    """The server gave no answer."""


async def _post(url, text, timeout_s):
    async with httpx.AsyncClient(timeout=timeout_s) as client:
        return await client.post(url, json={"text": text})


def ask(base_url, text, *, timeout_s=60.0):
    url = f"{base_url.rstrip('/')}/chat"
    try:
        response = asyncio.run(_post(url, text, timeout_s))
    except httpx.HTTPError as error:
        raise ChatError(f"{base_url}: {error!r}") from error
    if response.status_code >= 400:
        raise ChatError(f"{response.status_code}: {_words(response)}")
    try:
        result = response.json()["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ChatError(f"no result: {response.text}") from error
    if not isinstance(result, str):
        raise ChatError(f"no text: {response.text}")
    return result


def _words(response):
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.text
    if isinstance(detail, str):
        return detail
    try:
        return ", ".join(each["msg"] for each in detail)
    except (KeyError, TypeError):
        return response.text
