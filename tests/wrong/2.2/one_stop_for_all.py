# caught by: test_who_leaves_disturbs_no_other | says: one client left, and
import json

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


class Body(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0.0, ge=0)


def create_app(handler):
    app = FastAPI()
    app.state.stop = False

    @app.post("/chat_stream")
    async def chat_stream(body: Body, request: Request):
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
            finished = False
            try:
                while piece is not None and not app.state.stop:
                    yield f"data: {json.dumps({'token': piece})}\n\n"
                    count += 1
                    piece = await anext(pieces, None)
                yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"
                finished = True
            except Exception as error:
                yield f"event: error\ndata: {json.dumps({'message': str(error)})}\n\n"
                finished = True
            finally:
                app.state.stop = app.state.stop or not finished
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream")

    return app
