# a right answer: one task sends everything, a second one fills its queue, a third reads the model
import asyncio
import json

from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

END = object()


def create_app(handler):
    router = APIRouter()

    @router.websocket("/ws")
    async def ws(websocket: WebSocket):
        await websocket.accept()
        out, prompts = asyncio.Queue(maxsize=8), asyncio.Queue()
        state = {"stop": None}

        async def send_all():
            while True:
                frame = await out.get()
                if frame is END:
                    await websocket.close(1011)
                else:
                    await websocket.send_json(frame)

        async def answer_all():
            while True:
                kwargs = await prompts.get()
                stop = state["stop"] = asyncio.get_running_loop().create_future()
                agen = handler.generate(kwargs.pop("prompt"), stream=True, **kwargs)
                n = 0
                try:
                    while not stop.done():
                        piece = await anext(agen, END)
                        if piece is END or stop.done():
                            break
                        await out.put({"type": "token", "text": piece})
                        n += 1
                except Exception as e:
                    await out.put({"type": "error", "message": str(e) or repr(e)})
                    await out.put(END)
                    return
                finally:
                    state["stop"] = None
                    await agen.aclose()
                await out.put({"type": "done", "pieces": n, "stopped": stop.done()})

        tasks = [asyncio.create_task(send_all()), asyncio.create_task(answer_all())]
        try:
            while websocket.client_state is WebSocketState.CONNECTED:
                message = await websocket.receive()
                if message["type"] == "websocket.receive":
                    try:
                        kwargs = read(message)
                    except Exception:
                        await out.put({"type": "error", "message": "what is this?"})
                    else:
                        if kwargs is None:
                            if state["stop"] is not None and not state["stop"].done():
                                state["stop"].set_result(None)
                        else:
                            prompts.put_nowait(kwargs)
        except WebSocketDisconnect:
            pass
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    app = FastAPI()
    app.include_router(router)
    return app


def read(message):
    frame = json.loads(message["text"])
    if frame.get("type") == "stop":
        return None
    assert "type" not in frame
    prompt = frame["prompt"]
    count = frame.get("max_new_tokens", 128)
    temperature = frame.get("temperature", 0.0)
    assert isinstance(prompt, str) and prompt != ""
    assert isinstance(count, int) and count >= 1
    assert isinstance(temperature, int | float) and 0 <= temperature < float("inf")
    return {"prompt": prompt, "max_new_tokens": count, "temperature": temperature}
