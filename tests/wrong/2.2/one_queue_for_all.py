# caught by: test_streams_do_not_wait_for_each_other | says: streams get mixed up
import asyncio
import json

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()
    queue = asyncio.Queue()

    async def read(body):
        try:
            async for piece in handler.generate(
                body.prompt,
                stream=True,
                max_new_tokens=body.max_new_tokens,
                temperature=body.temperature,
            ):
                await queue.put(piece)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        reader = asyncio.create_task(read(body))
        first = await queue.get()
        if isinstance(first, Exception):
            raise HTTPException(500, "the model failed")

        async def events():
            piece, count = first, 0
            try:
                while isinstance(piece, str):
                    yield f"data: {json.dumps({'token': piece})}\n\n"
                    count += 1
                    piece = await queue.get()
                if piece is None:
                    yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
                else:
                    yield f"event: error\ndata: {json.dumps({'message': str(piece)})}\n\n"
            finally:
                reader.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
