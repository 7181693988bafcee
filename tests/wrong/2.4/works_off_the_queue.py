# caught by: test_who_leaves_takes_the_waiting_prompts_along | says: still worked
import asyncio
import json

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError


class Ask(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        prompts = asyncio.Queue()
        state = {"running": False, "stop": False, "gone": False, "waiting": None}

        async def next_piece(pieces):
            # what "stop" or leaving cancels
            state["waiting"] = asyncio.ensure_future(anext(pieces, None))
            await asyncio.wait([state["waiting"]])
            return None if state["waiting"].cancelled() else state["waiting"].result()

        async def tell(frame):
            if not state["gone"]:
                await socket.send_json(frame)

        async def answer(ask):
            pieces = handler.generate(stream=True, **ask.model_dump())
            sent = 0
            try:
                while (piece := await next_piece(pieces)) is not None:
                    if state["stop"]:
                        break
                    await tell({"type": "token", "text": piece})
                    sent += 1
            finally:
                await pieces.aclose()
            await tell({"type": "done", "pieces": sent, "stopped": state["stop"]})

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

        app.state.answering = asyncio.create_task(answer_all())
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
                except (ValueError, ValidationError) as error:
                    await socket.send_json({"type": "error", "message": str(error)})
        except WebSocketDisconnect:
            pass
        finally:
            state["gone"] = True
            if state["waiting"]:
                state["waiting"].cancel()

    return app
