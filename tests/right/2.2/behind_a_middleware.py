# a right answer: behind a BaseHTTPMiddleware, with a router, an exception handler and aclosing
import contextlib
import json

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt, constr
from starlette.responses import StreamingResponse


class ModelFailed(Exception):
    pass


class ChatRequest(BaseModel):
    prompt: constr(min_length=1)
    max_new_tokens: PositiveInt = 128
    temperature: FiniteFloat = Field(0.0, ge=0)


async def frames(first, pieces):
    count = 0
    async with contextlib.aclosing(pieces):
        try:
            while first:
                piece = first.pop()
                count += 1
                yield f"data: {json.dumps({'token': piece})}\n\n"
                with contextlib.suppress(StopAsyncIteration):
                    first.append(await anext(pieces))
        except Exception as failure:
            message = json.dumps({"message": f"{type(failure).__name__}: {failure}"})
            yield f"data: {message}\nevent: error\n\n"
            return
    yield f"event: done\ndata: {json.dumps({'pieces': count})}\n\n"


def create_app(handler):
    router = APIRouter()

    @router.post("/chat_stream")
    async def chat_stream(asked: ChatRequest):
        pieces = handler.generate(asked.prompt, stream=True, **asked.model_dump(exclude={"prompt"}))
        first = []
        try:
            first.append(await anext(pieces))
        except StopAsyncIteration:
            pass
        except Exception as failure:
            raise ModelFailed from failure
        return StreamingResponse(frames(first, pieces), media_type="text/event-stream")

    app = FastAPI()
    app.include_router(router)

    @app.middleware("http")
    async def name_the_server(request, call_next):
        response = await call_next(request)
        response.headers["x-served-by"] = "me"
        return response

    @app.exception_handler(ModelFailed)
    async def say_it_failed(request, failure):
        return JSONResponse({"error": "the model failed, try again"}, status_code=500)

    return app
