"""Generators around generators: one encodes, one tells of errors, one closes."""

import asyncio
import json
import logging

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process
from pydantic import TypeAdapter


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


async def encoded(pieces):
    try:
        async for piece in pieces:
            yield encode_event(piece)
    finally:
        await pieces.aclose()


async def with_error_event(events):
    sent = 0
    try:
        async for event in events:
            yield event
            sent += 1
    except Exception:
        if sent == 0:
            raise
        logging.getLogger().exception("stream failed")
        yield encode_event(ServerSentEvent(event="error", data={"error": {"message": "It failed."}}))
    finally:
        await events.aclose()


async def chained(first, rest):
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    async def attempt():
        result = await process(handler, request_body)
        if isinstance(result, Response):
            return result
        if hasattr(result, "__anext__"):
            events = with_error_event(encoded(result))
            try:
                first = await events.__anext__()
            except StopAsyncIteration:
                first = b""
            headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
            return StreamingResponse(chained(first, events), media_type="text/event-stream", headers=headers)
        if response_context is not None:
            adapter = TypeAdapter(response_context)
            result = jsonable_encoder(adapter.dump_python(adapter.validate_python(result), by_alias=True))
        return JSONResponse(jsonable_encoder(result))

    async def disconnect():
        while not (await request.receive())["type"].endswith("disconnect"):
            continue

    attempted, gone = asyncio.ensure_future(attempt()), asyncio.ensure_future(disconnect())
    await asyncio.wait({attempted, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if attempted.cancel():
        return Response()
    error = attempted.exception()
    if error is None:
        return attempted.result()
    if isinstance(error, HTTPException):
        raise error
    logging.getLogger().error("request failed", exc_info=error)
    return Response("Sorry.", 500)
