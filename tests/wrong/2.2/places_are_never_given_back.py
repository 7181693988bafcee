# caught by: test_after_an_error_the_next_request_works | says: no answer to
import asyncio
import json

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()
    places = asyncio.Semaphore(2)

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        await places.acquire()
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            first = await anext(pieces, None)
        except Exception as error:
            raise HTTPException(500, "the model failed") from error

        async def events():
            piece, count = first, 0
            try:
                while piece is not None:
                    yield f"data: {json.dumps({'token': piece})}\n\n"
                    count += 1
                    piece = await anext(pieces, None)
                yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
            except asyncio.CancelledError:
                places.release()
                raise
            except Exception as error:
                yield f"event: error\ndata: {json.dumps({'message': str(error)})}\n\n"
            else:
                places.release()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
