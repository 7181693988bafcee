# caught by: test_a_binary_frame_is_an_error_frame, test_a_wrong_frame_during_an_answer | says: a binary frame ends the connection
import asyncio
import json

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect


class Chat:
    def __init__(self, handler, websocket):
        self.handler, self.websocket = handler, websocket
        self.prompts, self.stop = asyncio.Queue(), None

    async def hear(self):
        async for text in self.websocket.iter_text():
            try:
                frame = json.loads(text)
                if frame.get("type", "stop") != "stop":
                    raise TypeError("unknown type")
                if "type" in frame:
                    if self.stop is not None:
                        self.stop.set()
                    continue
                prompt, count = frame["prompt"], frame.get("max_new_tokens", 128)
                heat = frame.get("temperature", 0)
                good = isinstance(prompt, str) and prompt and isinstance(count, int) and count > 0
                if not good or not 0 <= heat:
                    raise ValueError("wrong")
                self.prompts.put_nowait((prompt, count, heat))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                await self.websocket.send_json({"type": "error", "message": repr(error)})

    async def speak(self):
        while True:
            prompt, count, heat = await self.prompts.get()
            self.stop, sent = asyncio.Event(), 0
            pieces = self.handler.generate(
                prompt, stream=True, max_new_tokens=count, temperature=heat
            )
            try:
                async for piece in pieces:
                    if self.stop.is_set():
                        break
                    await self.websocket.send_json({"type": "token", "text": piece})
                    sent += 1
            except WebSocketDisconnect:
                return
            except Exception as error:
                await self.websocket.send_json({"type": "error", "message": str(error)})
                await self.websocket.close(1011)
                return
            finally:
                await pieces.aclose()
            stopped, self.stop = self.stop.is_set(), None
            await self.websocket.send_json({"type": "done", "pieces": sent, "stopped": stopped})


def create_app(handler):
    async def ws(websocket):
        await websocket.accept()
        chat = Chat(handler, websocket)
        speaking = asyncio.create_task(chat.speak())
        try:
            await chat.hear()
        except WebSocketDisconnect:
            pass
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    return Starlette(routes=[WebSocketRoute("/ws", ws)])
