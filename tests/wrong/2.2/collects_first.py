# caught by: test_each_piece_is_sent_as_soon_as_it_is_there, test_an_error_after_the_first_piece_is_an_event, test_the_model_stops_when_the_client_leaves, test_the_model_stops_when_the_client_left_early | says: nothing streams: all pieces came after the model had finished
import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()

    @app.post("/chat_stream")
    async def chat_stream(body: Body):
        pieces = [
            piece
            async for piece in handler.generate(
                body.prompt,
                stream=True,
                max_new_tokens=body.max_new_tokens,
                temperature=body.temperature,
            )
        ]

        def events():
            for piece in pieces:
                yield f"data: {json.dumps({'token': piece})}\n\n"
            yield f"event: done\ndata: {json.dumps({'pieces': len(pieces)})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
