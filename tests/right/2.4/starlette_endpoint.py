# a right answer: Starlette's WebSocketEndpoint, an object a connection, checks by hand
import asyncio
import contextlib
import json

from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect


class BadFrame(Exception):
    pass


def create_app(handler):
    class Chat(WebSocketEndpoint):
        async def on_connect(self, websocket):
            await websocket.accept()
            self.queue = asyncio.Queue()
            self.stop_asked = None
            self.worker = asyncio.create_task(self.work(websocket))

        async def on_receive(self, websocket, data):
            try:
                frame = understand(data)
            except BadFrame as bad:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await websocket.send_text(json.dumps({"type": "error", "message": str(bad)}))
                return
            if frame == "stop":
                if self.stop_asked is not None:
                    self.stop_asked.set()
            else:
                self.queue.put_nowait(frame)

        async def on_disconnect(self, websocket, close_code):
            self.worker.cancel()
            await asyncio.gather(self.worker, return_exceptions=True)

        async def work(self, websocket):
            while True:
                prompt, limit, temperature = await self.queue.get()
                self.stop_asked = asyncio.Event()
                pieces = handler.generate(
                    prompt, stream=True, max_new_tokens=limit, temperature=temperature
                )
                count = 0
                async with contextlib.aclosing(pieces):
                    while not self.stop_asked.is_set():
                        try:
                            piece = await pieces.__anext__()
                        except StopAsyncIteration:
                            break
                        except Exception as error:
                            text = json.dumps({"type": "error", "message": f"model: {error}"})
                            await websocket.send_text(text)
                            await websocket.close(1011)
                            return
                        if not self.stop_asked.is_set():
                            await websocket.send_text(json.dumps({"type": "token", "text": piece}))
                            count += 1
                stopped = self.stop_asked.is_set()
                self.stop_asked = None
                done = {"type": "done", "pieces": count, "stopped": stopped}
                await websocket.send_text(json.dumps(done))

    return Starlette(routes=[WebSocketRoute("/ws", Chat)])


def understand(data):
    if not isinstance(data, str):
        raise BadFrame("binary")
    try:
        frame = json.loads(data)
        if "type" in frame:
            if frame["type"] != "stop":
                raise BadFrame("type")
            return "stop"
        prompt = frame["prompt"]
        limit = frame.get("max_new_tokens", 128)
        temperature = frame.get("temperature", 0.0)
        if type(prompt) is str and prompt and type(limit) is int and limit > 0:
            if type(temperature) in (int, float) and 0 <= temperature < float("inf"):
                return prompt, limit, temperature
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        pass
    raise BadFrame("not a prompt, not a stop")
