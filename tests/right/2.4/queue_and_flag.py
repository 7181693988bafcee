# a right answer: a task answers from a queue; the listener sets a flag
import asyncio
import json

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError


class Ask(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        prompts = asyncio.Queue()
        state = {"running": False, "stop": False}

        async def answer(ask):
            pieces = handler.generate(stream=True, **ask.model_dump())
            sent = 0
            try:
                async for piece in pieces:
                    if state["stop"]:
                        break
                    await socket.send_json({"type": "token", "text": piece})
                    sent += 1
            finally:
                await pieces.aclose()
            await socket.send_json({"type": "done", "pieces": sent, "stopped": state["stop"]})

        async def answer_all():
            while True:
                ask = await prompts.get()
                state.update(running=True, stop=False)
                try:
                    await answer(ask)
                except WebSocketDisconnect:
                    return
                except Exception as error:
                    await socket.send_json({"type": "error", "message": str(error)})
                    await socket.close(1011)
                    return
                state["running"] = False

        answering = asyncio.create_task(answer_all())
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                try:
                    frame = json.loads(message.get("text") or "")
                    if isinstance(frame, dict) and "type" in frame:
                        if frame["type"] != "stop":
                            raise ValueError("unknown type")
                        state["stop"] = state["running"]
                    else:
                        prompts.put_nowait(Ask.model_validate(frame))
                except (ValueError, RecursionError, ValidationError) as error:
                    await socket.send_json({"type": "error", "message": str(error)})
        except WebSocketDisconnect:
            pass
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    return app
