# caught by: test_stop_ends_the_answer, test_stop_stops_the_model, test_stop_stops_the_real_model, test_a_wrong_frame_during_an_answer, test_a_wrong_frame_is_an_error_frame | says: a stop mid-answer was ignored
import json
from contextlib import aclosing

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field


class Frame(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def websocket_endpoint(websocket: WebSocket):
        await websocket.accept()
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                try:
                    data = json.loads(message.get("text") or "")
                    if isinstance(data, dict) and data.get("type") == "stop":
                        continue
                    frame = Frame(**data)
                except Exception as error:
                    await websocket.send_json({"type": "error", "message": str(error)})
                    continue
                count = 0
                answer = handler.generate(
                    frame.prompt,
                    stream=True,
                    max_new_tokens=frame.max_new_tokens,
                    temperature=frame.temperature,
                )
                async with aclosing(answer):
                    try:
                        async for piece in answer:
                            await websocket.send_json({"type": "token", "text": piece})
                            count += 1
                    except WebSocketDisconnect:
                        raise
                    except Exception as error:
                        await websocket.send_json({"type": "error", "message": str(error)})
                        await websocket.close(1011)
                        return
                await websocket.send_json({"type": "done", "pieces": count, "stopped": False})
        except WebSocketDisconnect:
            pass

    return app
