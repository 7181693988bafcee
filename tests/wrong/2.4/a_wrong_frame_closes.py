# caught by: test_a_wrong_frame_is_an_error_frame, test_a_binary_frame_is_an_error_frame, test_a_wrong_frame_during_an_answer | says: ends the connection
import asyncio

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field


class Ask(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()

    @app.websocket("/ws")
    async def chat(socket: WebSocket):
        await socket.accept()
        asks = asyncio.Queue()
        running = stop = None

        async def work():
            nonlocal running, stop
            while True:
                ask = await asks.get()
                running, stop, sent = True, False, 0
                pieces = handler.generate(stream=True, **ask.model_dump())
                try:
                    async for piece in pieces:
                        if stop:
                            break
                        await socket.send_json({"type": "token", "text": piece})
                        sent += 1
                except WebSocketDisconnect:
                    return
                except Exception as error:
                    await socket.send_json({"type": "error", "message": str(error)})
                    await socket.close(code=1011)
                    return
                finally:
                    await pieces.aclose()
                await socket.send_json({"type": "done", "pieces": sent, "stopped": stop})
                running = False

        worker = asyncio.create_task(work())
        try:
            while True:
                data = await socket.receive_json()
                if isinstance(data, dict) and data.get("type") == "stop":
                    stop = running
                else:
                    asks.put_nowait(Ask.model_validate(data))
        except WebSocketDisconnect:
            pass
        except Exception as error:
            try:
                await socket.send_json({"type": "error", "message": str(error)})
                await socket.close(code=1008)  # policy violation
            except WebSocketDisconnect:
                pass
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    return app
