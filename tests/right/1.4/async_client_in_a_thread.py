# a right answer: an AsyncClient on a loop of its own, in a thread of its own, so that it works everywhere
import asyncio
import threading

import httpx


class ChatError(Exception):
    pass


async def _ask(base_url, text, timeout_s):
    try:
        async with httpx.AsyncClient(timeout=timeout_s) as client:
            response = await client.post(f"{base_url.rstrip('/')}/chat", json={"text": text})
    except Exception as error:
        raise ChatError(f"no answer from {base_url} ({error!r})") from error
    try:
        data = response.json()
    except Exception:
        data = None
    fields = data if isinstance(data, dict) else {}
    if response.is_error:
        detail = fields.get("detail")
        try:
            words = detail if isinstance(detail, str) else ", ".join(d["msg"] for d in detail)
        except Exception:
            words = response.text
        raise ChatError(f"{response.status_code}: {words}")
    if not isinstance(fields.get("result"), str):
        raise ChatError(f"{base_url} answered something else: {response.text}")
    return fields["result"]


def ask(base_url, text, *, timeout_s=60.0):
    outcome = {}

    def run():
        try:
            outcome["result"] = asyncio.run(_ask(base_url, text, timeout_s))
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
