"""Looks ten times a second whether the client is still there."""

import asyncio
import json
import logging
from contextlib import aclosing

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process

log = logging.getLogger("service")


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


def failed():
    log.error("a request failed", exc_info=True)
    return JSONResponse({"detail": "something went wrong"}, status_code=500)


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    task = asyncio.ensure_future(start(handler, request_body, response_context))
    while not task.done():
        await asyncio.wait([task], timeout=0.1)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            break
    try:
        return await task
    except asyncio.CancelledError:
        return Response()
    except HTTPException as error:
        return JSONResponse({"detail": error.detail}, status_code=error.status_code)
    except Exception:
        return failed()


async def start(handler, request_body, response_context):
    result = await process(handler, request_body)
    if isinstance(result, Response):
        return result
    if hasattr(result, "aclose"):
        try:
            async for piece in result:
                return stream(encode_event(piece), result)
            return stream(b"", result)
        except BaseException:
            await result.aclose()
            raise
    if response_context is not None:
        if isinstance(result, response_context):
            result = result.model_dump(by_alias=True)
        result = response_context.model_validate(result).model_dump(mode="json", by_alias=True)
    return JSONResponse(jsonable_encoder(result))


def stream(first, pieces):
    async def events():
        async with aclosing(pieces):
            try:
                yield first
                async for piece in pieces:
                    yield encode_event(piece)
            except Exception:
                failed()
                data = {"error": {"message": "something went wrong"}}
                yield f"event: error\ndata: {json.dumps(data)}\n\n".encode()

    return StreamingResponse(
        events(), headers={"Cache-Control": "no-cache", "Content-Type": "text/event-stream"}
    )
