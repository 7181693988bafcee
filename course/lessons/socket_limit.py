"""Makes prompts over a WebSocket count as requests: the limit of exercise 2.3, around an app of 2.4."""

import contextlib
import json

import httpx


class SocketLimit:
    """An app around `app` in which each frame except "stop" counts, and one over the limit gets an error frame.

    `limited` is an app of exercise 2.3. For each frame, it is sent a request without a body from the client's
    address, within this process. The request counts, like any other, and costs the model no step.
    """

    def __init__(self, app, limited):
        self.app, self.limited = app, limited

    async def __call__(self, scope, receive, send):
        async def receive_within_the_limit():
            while True:
                message = await receive()
                if message["type"] != "websocket.receive" or _is_stop(message):
                    return message
                refusal = await self._refusal(scope["client"])
                if refusal is None:
                    return message
                frame = json.dumps({"type": "error", "message": refusal})
                with contextlib.suppress(OSError):  # the client has left
                    await send({"type": "websocket.send", "text": frame})

        counted = scope["type"] == "websocket"
        await self.app(scope, receive_within_the_limit if counted else receive, send)

    async def _refusal(self, client):
        transport = httpx.ASGITransport(self.limited, raise_app_exceptions=False, client=tuple(client))
        async with httpx.AsyncClient(transport=transport, base_url="http://limit", trust_env=False) as http:
            response = await http.post("/chat_stream")
        if response.status_code != 429:
            return None
        wait_s = response.headers.get("retry-after")
        again = f" Try again in {wait_s} seconds." if wait_s else ""
        return f"Too many prompts: over a WebSocket, each one counts as a request.{again}"


def _is_stop(message):
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        return json.loads(message.get("text") or "")["type"] == "stop"
    return False
