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

        {"type": "token", "text": "你好"}                     for each piece, as soon as it is there
        {"type": "done", "pieces": 1, "stopped": false}

    The bounds are those of exercise 2.2, and what is not graded there is not graded here; upper bounds are
    yours. Many prompts can be sent on one
    connection; one that comes during an answer waits its turn, even if 40 wait (more may be refused).
    Connections do not wait for each other.

    `stop` ends the answer in progress, at its next piece at the latest: the model stops within
    three steps, `done` says "stopped": true and how many pieces were sent, and the connection lives
    on. It is ignored when nothing is running, and stops no one else and nothing later. One that comes
    right behind its prompt, before the answer has begun, may be ignored or stop that answer.

    A frame that is none of this (another `type`, with or without a prompt; binary; nested too deep to
    read) gets {"type": "error", "message": "..."}; the answer in progress and the connection go on.
    When the model fails, the client gets such a frame too, and then the close code 1011. When the
    client leaves, the model stops within three steps, and no log shows a traceback.

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
        conversation = _Conversation(socket, handler)
        try:
            await socket.accept()
            # two tasks: while one sends an answer, the other hears "stop" and that the client left
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(conversation.answer())
                await conversation.listen()
                answering.cancel()
        except* WebSocketDisconnect:
            pass  # one side has closed; there is nobody left to tell

    return app


class _Prompt(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    max_new_tokens: int = Field(128, ge=1, le=1024, strict=True)
    temperature: float = Field(0.0, ge=0, le=2, strict=True, allow_inf_nan=False)


class _Conversation:
    """One connection. The first in `line` is the prompt that is being answered."""

    def __init__(self, socket, handler):
        self.socket, self.handler = socket, handler
        self.line = deque()
        self.prompt_came = asyncio.Event()
        self.stopped = False

    async def listen(self):
        """Until the client has left."""
        while (message := await self.socket.receive())["type"] != "websocket.disconnect":
            try:
                self._take(message.get("text"))
            except ValueError as error:
                await self._send(type="error", message=str(error))

    def _take(self, text):
        frame = _read(text)
        if frame == "stop":
            # only what is in progress, nothing later
            self.stopped = bool(self.line)
        elif len(self.line) > MOST_WAITING:
            raise ValueError("too many prompts are waiting: read some answers first")
        else:
            self.line.append(frame)
            self.prompt_came.set()

    async def answer(self):
        """One prompt after the other, until the model fails."""
        while True:
            while not self.line:
                self.prompt_came.clear()
                await self.prompt_came.wait()
            await self._answer(self.line[0])
            self.line.popleft()
            self.stopped = False

    async def _answer(self, prompt):
        pieces = self.handler.generate(
            prompt.prompt,
            stream=True,
            max_new_tokens=prompt.max_new_tokens,
            temperature=prompt.temperature,
        )
        sent = 0
        try:
            while (piece := await anext(pieces, None)) is not None and not self.stopped:
                await self._send(type="token", text=piece)
                sent += 1
        except WebSocketDisconnect:
            raise
        except Exception as error:
            logger.warning("the model failed after %d pieces: %r", sent, error)
            await self._send(type="error", message=str(error) or "the model failed")
            await self.socket.close(1011)
            # also ends the task that listens
            raise WebSocketDisconnect(1011) from error
        finally:
            await pieces.aclose()
        await self._send(type="done", pieces=sent, stopped=self.stopped)

    async def _send(self, **frame):
        try:
            await self.socket.send_text(json.dumps(frame, ensure_ascii=False))
        except RuntimeError:
            # what Starlette raises when the other task has already met with a WebSocketDisconnect
            raise WebSocketDisconnect(1006) from None


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
