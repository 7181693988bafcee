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
    """Create an app with a WebSocket at `/ws`. All frames are text frames that contain JSON.

    The client sends one of

        {"prompt": "你好", "max_new_tokens": 128, "temperature": 0}
        {"type": "stop"}

    and receives, for each prompt,

        {"type": "token", "text": "你好"}                     for each piece, as soon as it is available
        {"type": "done", "pieces": 1, "stopped": false}

    The bounds are those of exercise 2.2, and what is not graded there is not graded here either; upper
    bounds are up to you. A client can send many prompts on one connection. A prompt that arrives
    during an answer waits its turn, even if 40 are waiting (you may refuse more than that).
    Connections do not wait for each other.

    `stop` ends the answer in progress, at its next piece at the latest: the model stops within three
    steps, `done` has "stopped": true and the number of pieces sent, and the connection stays open. A
    `stop` is ignored when nothing is running. It never stops another connection's answer or a later
    one. A `stop` that arrives right after its prompt, before the answer has started, may be ignored or
    may stop that answer.

    Any other frame (another `type`, with or without a prompt; binary; nested too deeply to parse) gets
    {"type": "error", "message": "..."}; the answer in progress and the connection continue. If the
    model fails, the client gets such a frame, too, followed by the close code 1011. When the client
    leaves, the model stops within three steps, and no traceback is logged.

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
            # two tasks: while one sends an answer, the other notices "stop" and a client that leaves
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(conversation.answer())
                await conversation.listen()
                answering.cancel()
        except* WebSocketDisconnect:
            pass  # one side has closed: there is no one left to tell

    return app


class _Prompt(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    max_new_tokens: int = Field(128, ge=1, le=1024, strict=True)
    temperature: float = Field(0.0, ge=0, le=2, strict=True, allow_inf_nan=False)


class _Conversation:
    """One connection. The first prompt in `line` is the one being answered."""

    def __init__(self, socket, handler):
        self.socket, self.handler = socket, handler
        self.line = deque()
        self.prompt_came = asyncio.Event()
        self.stopped = False

    async def listen(self):
        """Read frames until the client leaves."""
        while (message := await self.socket.receive())["type"] != "websocket.disconnect":
            try:
                self._take(message.get("text"))
            except ValueError as error:
                await self._send(type="error", message=str(error))

    def _take(self, text):
        frame = _read(text)
        if frame == "stop":
            # stops only the answer in progress, not a later one
            self.stopped = bool(self.line)
        elif len(self.line) > MOST_WAITING:
            raise ValueError("too many prompts are waiting: read some answers first")
        else:
            self.line.append(frame)
            self.prompt_came.set()

    async def answer(self):
        """Answer one prompt after another, until the model fails."""
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
            # this also ends the task that listens
            raise WebSocketDisconnect(1011) from error
        finally:
            await pieces.aclose()
        await self._send(type="done", pieces=sent, stopped=self.stopped)

    async def _send(self, **frame):
        try:
            await self.socket.send_text(json.dumps(frame, ensure_ascii=False))
        except RuntimeError:
            # Starlette raises this if the other task has already got a WebSocketDisconnect
            raise WebSocketDisconnect(1006) from None


def _read(text):
    """Parse a frame into "stop" or a prompt.

    Raises:
        ValueError: the message says what is wrong with the frame.
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
