# a right answer: each answer is a task of its own, one after the other; stop cancels it
import asyncio
import json
import logging

from fastapi import FastAPI, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

log = logging.getLogger("chat")


class Ask(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=0, ge=0, allow_inf_nan=False)


class Session:
    def __init__(self, socket, handler):
        self.socket, self.handler = socket, handler
        self.inbox = asyncio.Queue()
        self.running = None

    async def run(self):
        feeder = asyncio.create_task(self.feed())
        try:
            while True:
                message = await self.socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                await self.on_message(message)
        finally:
            tasks = [task for task in (feeder, self.running) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def on_message(self, message):
        try:
            data = json.loads(message["text"])
            if isinstance(data, dict) and "type" in data:
                if data["type"] != "stop":
                    raise ValueError("type")
                if self.running is not None:
                    self.running.cancel("stop")
                return
            self.inbox.put_nowait(Ask(**data))
        except (KeyError, TypeError, ValueError, RecursionError, ValidationError) as error:
            log.info("a wrong frame: %s", error)
            await self.send(type="error", message="this frame is no prompt and no stop")

    async def feed(self):
        while True:
            ask = await self.inbox.get()
            self.count = 0
            self.running = asyncio.create_task(self.stream(ask))
            try:
                await self.running
            except asyncio.CancelledError:
                if not self.running.cancelled() or asyncio.current_task().cancelling():
                    raise
                self.running = None
                await self.send(type="done", pieces=self.count, stopped=True)
            else:
                self.running = None

    async def stream(self, ask):
        pieces = self.handler.generate(
            ask.prompt, stream=True, max_new_tokens=ask.max_new_tokens, temperature=ask.temperature
        )
        try:
            async for piece in pieces:
                await self.send(type="token", text=piece)
                self.count += 1
        except Exception as error:
            log.exception("the model failed")
            await self.send(type="error", message=str(error))
            if self.socket.application_state is WebSocketState.CONNECTED:
                await self.socket.close(1011)
        else:
            await self.send(type="done", pieces=self.count, stopped=False)
        finally:
            await pieces.aclose()

    async def send(self, **frame):
        try:
            await self.socket.send_text(json.dumps(frame))
        except (WebSocketDisconnect, RuntimeError):
            pass


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def endpoint(socket: WebSocket):
        await socket.accept()
        await Session(socket, handler).run()

    return app
