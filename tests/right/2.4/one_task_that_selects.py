# a right answer: a single task that waits for the next frame and the next piece at once
import asyncio
import json
from collections import deque
from typing import Annotated

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError


class Prompt(BaseModel):
    prompt: Annotated[str, Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        waiting, pieces, sent = deque(), None, 0
        hear, make = asyncio.ensure_future(socket.receive()), None
        try:
            while True:
                if pieces is None and waiting:
                    pieces = handler.generate(stream=True, **waiting.popleft().model_dump())
                    sent = 0
                if pieces is not None and make is None:
                    make = asyncio.ensure_future(pieces.__anext__())
                both = {hear, make} if make else {hear}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if hear.done():
                    message = hear.result()
                    if message["type"] == "websocket.disconnect":
                        return
                    hear = asyncio.ensure_future(socket.receive())
                    try:
                        frame = json.loads(message.get("text") or "")
                        if frame == {"type": "stop"}:
                            if pieces is not None:
                                make.cancel()
                                await asyncio.gather(make, return_exceptions=True)
                                await pieces.aclose()
                                pieces = make = None
                                await say(socket, type="done", pieces=sent, stopped=True)
                        elif isinstance(frame, dict) and "type" in frame:
                            raise ValueError("unknown type")
                        else:
                            waiting.append(Prompt.model_validate(frame))
                    except (ValueError, RecursionError, ValidationError) as error:
                        await say(socket, type="error", message=str(error))
                    continue
                try:
                    piece = make.result()
                except StopAsyncIteration:
                    pieces = make = None
                    await say(socket, type="done", pieces=sent, stopped=False)
                    continue
                except Exception as error:
                    await say(socket, type="error", message=repr(error))
                    await socket.close(code=1011, reason="the model failed")
                    return
                make = None
                await say(socket, type="token", text=piece)
                sent += 1
        except WebSocketDisconnect:
            return
        finally:
            rest = [task for task in (hear, make) if task]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            if pieces is not None:
                await pieces.aclose()

    return app


async def say(socket, **frame):
    await socket.send_json(frame)
