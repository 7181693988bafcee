# a right answer: Starlette's plain routes, the body checked by hand, anyio with a limiter of its own
import json
import logging
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse


def text_of(body):
    try:
        text = json.loads(body)["text"]
    except (ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) and 1 <= len(text) <= 4000 else None


def create_app(load, chat):
    loaded = []

    @asynccontextmanager
    async def lifespan(app):
        loaded.extend(await anyio.to_thread.run_sync(load))
        app.state.limiter = anyio.CapacityLimiter(2)
        yield

    async def post_chat(request: Request):
        text = text_of(await request.body())
        if text is None:
            return JSONResponse({"detail": "text: 1 to 4000 characters"}, status_code=422)
        try:
            reply, _ = await anyio.to_thread.run_sync(
                chat, *loaded, text, limiter=request.app.state.limiter
            )
        except Exception:
            logging.exception("no answer")
            return PlainTextResponse("The model has failed. Please try again.", status_code=500)
        return JSONResponse({"result": reply})

    async def get_health(request):
        return JSONResponse({"status": "ok"})

    app = FastAPI(lifespan=lifespan)
    app.add_route("/chat", post_chat, methods=["POST"])
    app.add_route("/health", get_health, methods=["GET"])
    return app
