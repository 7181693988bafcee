# caught by: test_a_prompt_during_an_answer_waits_its_turn, test_after_stop_the_next_prompts_are_answered, test_when_the_model_fails_the_client_is_told | says: the answers get mixed up
import asyncio
import json

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketDisconnected


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def ws(websocket: WebSocket):
        await websocket.accept()
        tasks = set()

        async def answer(prompt, max_new_tokens=128, temperature=0.0):
            sent, stopped = 0, False
            pieces = handler.generate(
                prompt, stream=True, max_new_tokens=max_new_tokens, temperature=temperature
            )
            try:
                async for piece in pieces:
                    await websocket.send_json({"type": "token", "text": piece})
                    sent += 1
            except asyncio.CancelledError:
                stopped = True
            except (WebSocketDisconnect, WebSocketDisconnected):
                return
            except Exception as error:
                await tell({"type": "error", "message": str(error)})
                await websocket.close(1011)
                return
            finally:
                await pieces.aclose()
            await tell({"type": "done", "pieces": sent, "stopped": stopped})

        async def tell(frame):
            try:
                await websocket.send_json(frame)
            except (WebSocketDisconnect, RuntimeError):
                pass

        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                break
            try:
                data = json.loads(message["text"])
                if data.get("type") == "stop":
                    for task in tasks:
                        task.cancel()
                    continue
                if "type" in data:
                    raise ValueError("an unknown type")
                prompt = data["prompt"]
                limit, heat = data.get("max_new_tokens", 128), data.get("temperature", 0)
                if not (isinstance(prompt, str) and prompt):
                    raise ValueError("a prompt is needed")
                if not (isinstance(limit, int) and limit > 0 and 0 <= heat < float("inf")):
                    raise ValueError("a number of tokens and a temperature are needed")
            except Exception as error:
                await tell({"type": "error", "message": repr(error)})
                continue
            task = asyncio.create_task(answer(prompt, limit, heat))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return app
