"""A Response of its own that writes to the wire and watches the client itself, in a task group of anyio."""

import json
import logging
import traceback

import anyio
from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process
from pydantic import RootModel, TypeAdapter

WORDS = "The server could not do this."


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


async def race(request, work, *args):
    """What work gives; None if the client left before."""
    outcome = []

    async with anyio.create_task_group() as group:

        async def watch():
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    group.cancel_scope.cancel()
                    return

        group.start_soon(watch)
        outcome.append(await work(*args))
        group.cancel_scope.cancel()
    return outcome[0] if outcome else None


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    response = await race(request, work, handler, request_body, response_context)
    if isinstance(response, Events):
        response.request = request
    if isinstance(response, HTTPException):
        raise response
    return response or Response(status_code=499)


async def work(handler, request_body, response_context):
    try:
        given = await process(handler, request_body)
        if isinstance(given, Response):
            return given
        if hasattr(given, "__anext__"):
            return await Events(given).begin()
        if response_context is not None:
            kind = TypeAdapter(response_context)
            text = kind.dump_json(kind.validate_python(given), by_alias=True)
        else:
            text = json.dumps(jsonable_encoder(given), ensure_ascii=False).encode()
        return Response(text, media_type="application/json")
    except HTTPException as error:
        return error
    except Exception:
        logging.getLogger("uvicorn.error").error("failed:\n%s", traceback.format_exc())
        return Response(WORDS, 500, media_type="text/plain")


class Events(Response):
    def __init__(self, pieces):
        self.pieces = pieces
        super().__init__(None, 200, {"cache-control": "no-cache"}, "text/event-stream")
        del self.headers["content-length"]

    async def begin(self):
        try:
            self.first = [encode_event(await anext(self.pieces))]
        except StopAsyncIteration:
            self.first = []
        except Exception:
            await self.pieces.aclose()
            raise
        return self

    async def __call__(self, scope, receive, send):
        try:
            await race(self.request, self.write, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self.pieces.aclose()

    async def write(self, send):
        async def put(data, more=True):
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            for event in self.first:
                await put(event)
            while True:
                try:
                    piece = await anext(self.pieces)
                except StopAsyncIteration:
                    break
                await put(encode_event(piece))
        except Exception as error:
            logging.exception("a stream broke off: %r", error)
            await put(encode_event(ServerSentEvent(event="error", data={"error": {"message": WORDS}})))
        await put(b"", more=False)
        return True
