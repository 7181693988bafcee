# a right answer: StreamingResponse with a format of its own, CRLF and comments
import json

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field


class Prompt(BaseModel):
    prompt: str = Field(min_length=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(0, ge=0, allow_inf_nan=False)


def event(data, name=None):
    lines = [f"event: {name}"] if name else []
    lines.append("data:" + json.dumps(data, ensure_ascii=False))
    return "\r\n".join(lines) + "\r\n\r\n"


def create_app(handler):
    app = FastAPI()

    @app.post("/chat_stream")
    async def chat_stream(body: Prompt):
        pieces = handler.generate(
            body.prompt,
            stream=True,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
        )
        try:
            first = await anext(pieces)
        except StopAsyncIteration:
            first = None
        except Exception:
            return JSONResponse({"detail": "the model failed"}, status_code=503)

        async def events():
            count = 0
            yield ": here it comes\r\n\r\n"
            try:
                if first is not None:
                    count += 1
                    yield event({"token": first})
                    async for piece in pieces:
                        count += 1
                        yield event({"token": piece})
                yield event({"pieces": count, "finish_reason": "stop"}, "done")
            except Exception as error:
                yield event({"message": str(error)}, "error")
            finally:
                await pieces.aclose()

        return StreamingResponse(events(), media_type="text/event-stream; charset=utf-8")

    return app
