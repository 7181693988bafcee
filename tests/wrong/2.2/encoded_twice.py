# caught by: test_each_piece_is_an_event, test_done_says_how_many_pieces_there_were, test_an_error_after_the_first_piece_is_an_event, test_any_text_survives | says: the data of a piece is not the expected JSON
import json

from fastapi import Depends, FastAPI, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)


def create_app(handler):
    app = FastAPI()

    async def start(body: Body):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            return await anext(pieces, None), pieces
        except Exception as error:
            raise HTTPException(500, "the model failed") from error

    @app.post("/chat_stream", response_class=EventSourceResponse)
    async def chat_stream(answer=Depends(start)):
        piece, pieces = answer
        count = 0
        try:
            while piece is not None:
                yield ServerSentEvent(data=json.dumps({"token": piece}))
                count += 1
                piece = await anext(pieces, None)
            yield ServerSentEvent(event="done", data=json.dumps({"pieces": count}))
        except Exception as error:
            yield ServerSentEvent(event="error", data=json.dumps({"message": str(error)}))
        finally:
            await pieces.aclose()

    return app
