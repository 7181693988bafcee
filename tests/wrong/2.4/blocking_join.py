# caught by: test_each_piece_is_sent_as_soon_as_it_is_there, test_connections_do_not_wait_for_each_other, test_a_prompt_during_an_answer_waits_its_turn, test_a_wrong_frame_is_an_error_frame, test_stop_stops_the_model | says: a blocking call inside async def
import asyncio
import json
import threading

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
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    frame = json.loads(message.get("text") or "")
                    if frame == {"type": "stop"}:
                        continue
                    ask = Ask.model_validate(frame)
                except (ValueError, RecursionError, ValidationError) as error:
                    await socket.send_json({"type": "error", "message": str(error)})
                    continue
                found, errors = [], []

                async def collect():
                    pieces = handler.generate(stream=True, **ask.model_dump())
                    try:
                        async for piece in pieces:
                            found.append(piece)
                    except Exception as error:
                        errors.append(error)

                # a loop of its own, so that the model disturbs nobody
                thread = threading.Thread(target=asyncio.run, args=(collect(),))
                thread.start()
                thread.join()
                for piece in found:
                    await socket.send_json({"type": "token", "text": piece})
                if errors:
                    await socket.send_json({"type": "error", "message": str(errors[0])})
                    await socket.close(1011)
                    return
                await socket.send_json({"type": "done", "pieces": len(found), "stopped": False})
        except WebSocketDisconnect:
            pass

    return app
