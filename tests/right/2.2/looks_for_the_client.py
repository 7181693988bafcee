# a right answer: validation by hand, a plain Request, is_disconnected() between two pieces
import json
import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

END = object()


def problem_of(body):
    if not isinstance(body, dict):
        return "send a JSON object"
    if not isinstance(body.get("prompt"), str) or not body["prompt"]:
        return "prompt: a string that is not empty"
    tokens, temperature = body.get("max_new_tokens", 128), body.get("temperature", 0)
    if type(tokens) is not int or tokens < 1:
        return "max_new_tokens: an integer of at least 1"
    if type(temperature) not in (int, float) or not 0 <= temperature < float("inf"):
        return "temperature: a finite number of at least 0"
    return None


def sse(data, event=""):
    head = f"event:{event}\n" if event else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def create_app(handler):
    app = FastAPI()

    @app.post("/chat_stream")
    async def chat_stream(request: Request):
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            return JSONResponse({"detail": "that is not JSON"}, 422)
        if problem := problem_of(body):
            return JSONResponse({"detail": problem}, 422)
        pieces = handler.generate(
            body["prompt"],
            stream=True,
            max_new_tokens=body.get("max_new_tokens", 128),
            temperature=body.get("temperature", 0),
        )
        try:
            piece = await anext(pieces, END)
        except Exception:
            logging.exception("before the first piece")
            return PlainTextResponse("The model is not well.", 500)

        async def stream():
            nonlocal piece
            sent = 0
            try:
                while piece is not END:
                    if await request.is_disconnected():
                        return
                    yield sse({"token": piece})
                    sent += 1
                    piece = await anext(pieces, END)
            except Exception as error:
                yield sse({"message": repr(error)}, "error")
            else:
                yield sse({"pieces": sent}, "done")
            finally:
                await pieces.aclose()

        return StreamingResponse(stream(), headers={"content-type": "text/event-stream"})

    return app
