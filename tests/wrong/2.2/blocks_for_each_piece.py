# caught by: test_streams_do_not_wait_for_each_other, test_the_model_stops_when_the_client_leaves | says: the event loop is blocked
import asyncio
import json
import threading

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()
    models_loop = asyncio.new_event_loop()
    threading.Thread(target=models_loop.run_forever, daemon=True).start()

    def next_of(pieces):
        async def following():
            return await anext(pieces, None)

        return asyncio.run_coroutine_threadsafe(following(), models_loop).result()

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            first = next_of(pieces)
        except Exception as error:
            raise HTTPException(500, "the model failed") from error

        async def events():
            piece, count = first, 0
            try:
                while piece is not None:
                    yield f"data: {json.dumps({'token': piece})}\n\n"
                    count += 1
                    piece = next_of(pieces)
                yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
            except Exception as error:
                yield f"event: error\ndata: {json.dumps({'message': str(error)})}\n\n"
            finally:
                asyncio.run_coroutine_threadsafe(pieces.aclose(), models_loop)

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
