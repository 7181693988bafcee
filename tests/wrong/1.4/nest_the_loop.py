# caught by: test_works_in_a_running_event_loop | says: where an event loop already runs
import asyncio

import httpx


class ChatError(Exception):
    pass


async def post(url, text, timeout_s):
    async with httpx.AsyncClient() as client:
        return await client.post(url, json={"text": text}, timeout=timeout_s)


def ask(base_url, text, *, timeout_s=60.0):
    loop = asyncio.new_event_loop()
    try:
        response = loop.run_until_complete(post(base_url.rstrip("/") + "/chat", text, timeout_s))
    except httpx.HTTPError as error:
        raise ChatError(f"{base_url}: {type(error).__name__} {error}") from error
    finally:
        loop.close()
    try:
        data = response.json()
    except ValueError:
        data = None
    data = data if isinstance(data, dict) else {}
    if response.status_code == 200 and isinstance(data.get("result"), str):
        return data["result"]
    said = data.get("detail")
    if isinstance(said, list) and all(isinstance(each, dict) for each in said):
        said = ", ".join(str(each.get("msg")) for each in said)
    words = said if isinstance(said, str) else response.text
    raise ChatError(f"HTTP {response.status_code}: {words}")
