# a right answer: the first piece decides the status; the events are an f-string each
import json

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Asked(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    async def events(pieces, piece):
        count = 0
        try:
            while piece is not None:
                yield f"data: {json.dumps({'token': piece})}\n\n"
                count += 1
                piece = await anext(pieces, None)
            yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
        except Exception as error:
            yield f"event: error\ndata: {json.dumps({'message': repr(error)})}\n\n"
        finally:
            await pieces.aclose()

    @app.post("/chat_stream")
    async def chat_stream(asked: Asked):
        options = asked.model_dump(exclude={"prompt"})
        pieces = handler.generate(asked.prompt, stream=True, **options)
        try:
            piece = await anext(pieces, None)
        except Exception as error:
            raise HTTPException(500, "no answer") from error
        return StreamingResponse(events(pieces, piece), media_type="text/event-stream")

    return app
