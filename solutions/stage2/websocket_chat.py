"""Exercise 2.4: a conversation over a WebSocket, with a stop button."""

import asyncio
import json
import logging
from collections import deque

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

logger = logging.getLogger(__name__)

MOST_WAITING = 100


def create_app(handler):
    """Make the app with the WebSocket `/ws`. All frames are JSON in text frames.

    The client sends either of

        {"prompt": "你好", "max_new_tokens": 128, "temperature": 0}
        {"type": "stop"}

    and receives, for each prompt,

        {"type": "token", "text": "你好"}                     for each piece
        {"type": "done", "pieces": 2, "stopped": false}

    The bounds are those of exercise 2.2. Many prompts can be sent on one connection; one that comes
    during an answer waits its turn. Connections do not wait for each other.

    `stop` ends the answer in progress, at its next piece at the latest: the model stops within three
    steps, `done` says "stopped": true and how many pieces were sent, and the connection lives on. It
    is ignored when nothing is running, and stops no one else and nothing later.

    A frame that is none of this gets {"type": "error", "message": "..."}; the answer in progress and
    the connection go on. When the model fails, the client gets such a frame too, and then the close
    code 1011. When the client leaves, the model stops within three steps, and nothing is logged.

    Args:
        handler: as in exercise 2.2.

    Returns:
        The FastAPI app.

    Example:
        >>> app = create_app(handler)
        >>> uvicorn.run(app)
    """
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        conversation = _Conversation(socket, handler)
        # two tasks: while one sends an answer, the other still hears "stop" and that the client left
        tasks = {
            asyncio.create_task(conversation.listen()),
            asyncio.create_task(conversation.answer()),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, WebSocketDisconnect):
                    raise outcome

    return app


class _Prompt(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    max_new_tokens: int = Field(128, ge=1, le=1024, strict=True)
    temperature: float = Field(0.0, ge=0, le=2, strict=True, allow_inf_nan=False)
    _stopped: bool = False


class _Conversation:
    """One connection. The first of `line` is the prompt that is being answered."""

    def __init__(self, socket, handler):
        self.socket, self.handler = socket, handler
        self.line = deque()
        self.more = asyncio.Event()

    async def listen(self):
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                frame = _read(message.get("text"))
            except ValueError as error:
                await self._send(type="error", message=str(error))
                continue
            if frame == "stop":
                if self.line:
                    self.line[0]._stopped = True
            elif len(self.line) > MOST_WAITING:
                await self._send(type="error", message="too many prompts are waiting")
            else:
                self.line.append(frame)
                self.more.set()

    async def answer(self):
        while True:
            await self.more.wait()
            while self.line:
                try:
                    await self._answer_one(self.line[0])
                except _ModelFailed as failure:
                    await self._send(type="error", message=str(failure))
                    await self.socket.close(1011)
                    return
                self.line.popleft()
            self.more.clear()

    async def _answer_one(self, prompt):
        sent = 0
        pieces = self.handler.generate(
            prompt.prompt,
            stream=True,
            max_new_tokens=prompt.max_new_tokens,
            temperature=prompt.temperature,
        )
        try:
            while not prompt._stopped:
                try:
                    piece = await anext(pieces, None)
                except Exception as error:
                    logger.warning("the model failed after %d pieces: %r", sent, error)
                    raise _ModelFailed(error) from error
                if piece is None or prompt._stopped:
                    break
                await self._send(type="token", text=piece)
                sent += 1
        finally:
            await pieces.aclose()
        await self._send(type="done", pieces=sent, stopped=prompt._stopped)

    async def _send(self, **frame):
        await self.socket.send_text(json.dumps(frame, ensure_ascii=False))


class _ModelFailed(Exception):
    """Not the connection's fault. The message is the model's."""


def _read(text):
    """A frame as "stop" or as a prompt.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if text is None:
        raise ValueError("send text frames, not binary ones")
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("that is not JSON") from None
    if not isinstance(frame, dict):
        raise ValueError('send an object: {"prompt": "..."} or {"type": "stop"}')
    if "type" in frame:
        if frame["type"] == "stop":
            return "stop"
        raise ValueError('the only "type" to send is "stop"')
    try:
        return _Prompt.model_validate(frame)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ValueError("; ".join(problems)) from None
