"""The leaving client cancels the task that runs respond's own work; FastAPI's own encoding of a model."""

import asyncio
import contextlib
import json
import logging

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process


def encode_event(piece) -> bytes:
    """A server-sent event as it goes over the wire.

    Args:
        piece: anything that FastAPI can encode, which becomes the event's data as JSON, without a
            name; or a `fastapi.sse.ServerSentEvent`, which says itself what is in it.

    Raises:
        ValueError, TypeError: the piece cannot be encoded.
    """
    says = isinstance(piece, ServerSentEvent)
    event, data = (piece, piece.data) if says else (ServerSentEvent(), piece)
    text = event.raw_data if says and data is None else json.dumps(jsonable_encoder(data), ensure_ascii=False)
    return format_sse_event(data_str=text, event=event.event, id=event.id, retry=event.retry, comment=event.comment)


class Left(Exception):
    pass


@contextlib.asynccontextmanager
async def cancelled_when_left(request):
    """Cancels what stands in its block when the client leaves."""
    me, left = asyncio.current_task(), []

    async def watch():
        while True:
            if (await request.receive()).get("type") == "http.disconnect":
                left.append(True)
                me.cancel()
                return

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        me.uncancel()
        raise Left from None
    finally:
        watcher.cancel()


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    try:
        async with cancelled_when_left(request):
            return await answer(handler, request_body, response_context)
    except Left:
        return Response()


async def answer(handler, request_body, response_context):
    try:
        result = await process(handler, request_body)
        if isinstance(result, Response):
            return result
        if not hasattr(result, "__anext__"):
            if response_context:
                names = response_context.model_fields
                if isinstance(result, response_context):
                    result = {names[name].alias or name: getattr(result, name) for name in names}
                result = response_context(**result)
            return JSONResponse(jsonable_encoder(result))
        first = []
        try:
            first.append(encode_event(await result.__anext__()))
        except StopAsyncIteration:
            pass
        except Exception:
            await result.aclose()
            raise
        return Stream(first, result)
    except HTTPException as error:
        raise HTTPException(error.status_code, error.detail) from None
    except Exception as error:
        logging.critical("no answer", exc_info=error)
        return Response(b'"internal error"', 500, media_type="application/json")


class Stream(StreamingResponse):
    media_type = "text/event-stream"

    def __init__(self, first, rest):
        self.rest = rest
        super().__init__(self.events(first))
        self.headers["Cache-Control"] = "no-cache"

    async def events(self, first):
        for event in first:
            yield event
        try:
            async for piece in self.rest:
                yield encode_event(piece)
        except Exception as error:
            logging.error("cut", exc_info=error)
            yield b'event: error\ndata: {"error": {"message": "internal error"}}\n\n'

    async def __call__(self, *args):
        try:
            await super().__call__(*args)
        finally:
            await self.rest.aclose()
