# caught by: test_the_model_stops_when_the_client_left_early | says: more steps after the client had left
import asyncio
import json

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()
    tasks = set()

    async def read(body, queue):
        try:
            async for piece in handler.generate(
                body.prompt,
                stream=True,
                max_new_tokens=body.max_new_tokens,
                temperature=body.temperature,
            ):
                queue.put_nowait(piece)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    @app.post("/chat_stream")
    async def chat_stream(body: Body, request: Request):
        queue = asyncio.Queue()
        task = asyncio.create_task(read(body, queue))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        first = await queue.get()
        if isinstance(first, Exception):
            raise HTTPException(500, "the model failed")
        if await request.is_disconnected():
            return Response(status_code=499)

        async def events():
            item, count = first, 0
            try:
                while isinstance(item, str):
                    yield f"data: {json.dumps({'token': item})}\n\n"
                    count += 1
                    item = await queue.get()
                if item is None:
                    yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
                else:
                    yield f"event: error\ndata: {json.dumps({'message': str(item)})}\n\n"
            finally:
                task.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
