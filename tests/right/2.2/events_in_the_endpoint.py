# a right answer: the first piece decides the status; the events are a closure
import json

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def sse(data, event=None):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n"


def create_app(handler):
    app = FastAPI()

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
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
                    yield sse({"token": piece})
                    count += 1
                    piece = await anext(pieces, None)
                yield sse({"pieces": count}, "done")
            except Exception as error:
                yield sse({"message": str(error)}, "error")
            finally:
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
