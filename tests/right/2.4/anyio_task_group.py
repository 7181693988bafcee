# a right answer: anyio's task group and object stream; stop cancels the scope of the answer
import json
import math

import anyio
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        put, prompts = anyio.create_memory_object_stream(math.inf)
        current = []

        async def answer_all():
            async for frame in prompts:
                scope = anyio.CancelScope()
                pieces = handler.generate(
                    frame["prompt"],
                    stream=True,
                    max_new_tokens=frame.get("max_new_tokens", 128),
                    temperature=frame.get("temperature", 0),
                )
                sent = 0
                current.append(scope)
                try:
                    with scope:
                        async for piece in pieces:
                            with anyio.CancelScope(shield=True):
                                await socket.send_json({"type": "token", "text": piece})
                            sent += 1
                except WebSocketDisconnect:
                    group.cancel_scope.cancel()
                    return
                except Exception as error:
                    await tell({"type": "error", "message": f"{type(error).__name__}: {error}"})
                    await close(1011)
                    group.cancel_scope.cancel()
                    return
                finally:
                    current.clear()
                    with anyio.CancelScope(shield=True):
                        await pieces.aclose()
                stopped = scope.cancel_called
                await tell({"type": "done", "pieces": sent, "stopped": stopped})

        async def tell(frame):
            try:
                await socket.send_json(frame)
            except (WebSocketDisconnect, RuntimeError):  # the latter, when it was tried before
                group.cancel_scope.cancel()

        async def close(code):
            try:
                await socket.close(code)
            except WebSocketDisconnect:
                pass

        async with anyio.create_task_group() as group:
            group.start_soon(answer_all)
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    group.cancel_scope.cancel()
                    break
                frame, problem = parse(message)
                if problem:
                    await tell({"type": "error", "message": problem})
                elif frame.get("type") == "stop":
                    for scope in current:
                        scope.cancel()
                else:
                    put.send_nowait(frame)

    return app


def parse(message):
    try:
        frame = json.loads(message["text"])
    except (KeyError, ValueError, RecursionError):
        return None, "JSON in text frames, please"
    if not isinstance(frame, dict):
        return None, "an object, please"
    if frame.get("type", "stop") != "stop":
        return None, "unknown type"
    if "type" in frame:
        return frame, None
    prompt, count, heat = (
        frame.get("prompt"),
        frame.get("max_new_tokens", 128),
        frame.get("temperature", 0),
    )
    if not isinstance(prompt, str) or not prompt:
        return None, "prompt: a text that is not empty"
    if type(count) is not int or count < 1:
        return None, "max_new_tokens: an integer of at least 1"
    if type(heat) not in (int, float) or not 0 <= heat < float("inf"):
        return None, "temperature: a finite number of at least 0"
    return frame, None
