# caught by: test_what_is_asked_reaches_the_handler | says: refuses a right body
import json
from typing import Annotated

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, BeforeValidator, Field


def only_a_float(value):
    if type(value) is not float:
        raise ValueError("not a float")
    return value


class Asked(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: Annotated[float, BeforeValidator(only_a_float)] = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def refuse(request, error):
        return JSONResponse({"detail": "no such request"}, 422)

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
