# caught by: test_no_traceback_when_a_client_leaves, test_a_wrong_frame_is_an_error_frame | says: and the log shows a traceback
import asyncio
import json
import logging

from fastapi import FastAPI, WebSocket

logger = logging.getLogger(__name__)


def valid(data):
    return (
        isinstance(data, dict)
        and isinstance(data.get("prompt"), str)
        and data["prompt"] != ""
        and isinstance(data.get("max_new_tokens", 1), int)
        and data.get("max_new_tokens", 1) >= 1
        and isinstance(data.get("temperature", 0), int | float)
        and 0 <= data.get("temperature", 0) < float("inf")
    )


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(websocket: WebSocket):
        await websocket.accept()
        queue, stop = asyncio.Queue(), asyncio.Event()
        busy = False

        async def answer():
            nonlocal busy
            while True:
                data = await queue.get()
                busy, count = True, 0
                stop.clear()
                stream = handler.generate(
                    data["prompt"],
                    stream=True,
                    max_new_tokens=data.get("max_new_tokens", 128),
                    temperature=data.get("temperature", 0.0),
                )
                try:
                    async for piece in stream:
                        if stop.is_set():
                            break
                        await websocket.send_json({"type": "token", "text": piece})
                        count += 1
                finally:
                    await stream.aclose()
                done = {"type": "done", "pieces": count, "stopped": stop.is_set()}
                await websocket.send_json(done)
                busy = False

        async def listen():
            while True:
                message = await websocket.receive()
                try:
                    data = json.loads(message.get("text") or message.get("bytes", b"").hex())
                except (ValueError, RecursionError):
                    data = None
                if isinstance(data, dict) and data.get("type") == "stop":
                    if busy:
                        stop.set()
                elif valid(data) and "text" in message:
                    queue.put_nowait(data)
                else:
                    await websocket.send_json({"type": "error", "message": "not understood"})

        tasks = [asyncio.create_task(answer()), asyncio.create_task(listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Exception as error:
            logger.exception("the conversation failed")
            try:
                await websocket.send_json({"type": "error", "message": str(error)})
                await websocket.close(1011)
            except Exception:
                pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return app
