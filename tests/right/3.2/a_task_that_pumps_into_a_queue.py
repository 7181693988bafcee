"""One task does all the work and puts what it has into a queue; its end is the response's."""

import asyncio
import json
import logging

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process
from pydantic import TypeAdapter

logger = logging.getLogger(__name__)
OOPS = {"error": {"message": "sorry"}}


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


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    out = asyncio.Queue(1)
    pump = asyncio.create_task(work(handler, request_body, response_context, out))
    pump.add_done_callback(lambda task: task.cancelled() or task.exception())
    first = asyncio.create_task(out.get())
    gone = asyncio.create_task(wait_for_leaving(request))
    try:
        await asyncio.wait([first, gone], return_when="FIRST_COMPLETED")
        if not first.done():
            return Response(status_code=204)
        kind, value = first.result()
    finally:
        gone.cancel()
        if not first.done() or first.result()[0] != "stream":
            pump.cancel()
            first.cancel()
    if kind == "raise":
        raise value
    if kind == "response":
        return value
    return StreamingResponse(
        events(out, pump), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


async def wait_for_leaving(request):
    message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await request.receive()


async def events(out, pump):
    try:
        while (event := await out.get()) is not None:
            yield event
    finally:
        pump.cancel()


async def work(handler, request_body, response_context, out):
    begun = False
    pieces = None
    try:
        result = await process(handler, request_body)
        if hasattr(result, "__anext__"):
            pieces = result
            async for piece in pieces:
                event = encode_event(piece)
                if not begun:
                    begun = True
                    await out.put(("stream", None))
                await out.put(event)
            if not begun:
                await out.put(("stream", None))
            await out.put(None)
            return
        if response_context is not None and not isinstance(result, Response):
            adapter = TypeAdapter(response_context)
            result = adapter.dump_python(adapter.validate_python(result), by_alias=True)
        if not isinstance(result, Response):
            result = JSONResponse(jsonable_encoder(result))
        await out.put(("response", result))
    except HTTPException as error:
        if not begun:
            await out.put(("raise", error))
        else:
            await late(out)
    except Exception:
        if begun:
            await late(out)
        else:
            logger.exception("failed")
            await out.put(("response", JSONResponse(OOPS, status_code=500)))
    finally:
        if pieces is not None:
            await pieces.aclose()


async def late(out):
    logger.exception("failed late")
    await out.put(encode_event(ServerSentEvent(data=OOPS, event="error")))
    await out.put(None)
