"""Exercise 3.2: what a handler returns, as the response to an HTTP request."""

import asyncio
import json
import logging

from fastapi import HTTPException, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.sse import ServerSentEvent, format_sse_event
from four_actions import process
from pydantic import TypeAdapter

_logger = logging.getLogger(__name__)
_FAILED = "Internal Server Error"
_END = object()


# given
def encode_event(piece) -> bytes:
    """Encode a server-sent event as the bytes that go over the wire.

    Args:
        piece: either a `fastapi.sse.ServerSentEvent`, which specifies its own fields, or anything else
            that FastAPI can encode: as JSON, it becomes the data of an event without a name.

    Raises:
        ValueError, TypeError: the piece cannot be encoded.
    """
    says = isinstance(piece, ServerSentEvent)
    event, data = (piece, piece.data) if says else (ServerSentEvent(), piece)
    text = event.raw_data if says and data is None else json.dumps(jsonable_encoder(data), ensure_ascii=False)
    return format_sse_event(data_str=text, event=event.event, id=event.id, retry=event.retry, comment=event.comment)


async def respond(handler, request_body, request: Request, response_context=None) -> Response:
    """Run `process(handler, request_body)` and turn what it returns into the response to `request`.

    A result (a pydantic model, a dataclass, a dict, a list, text, a number, None) becomes a 200 with JSON,
    encoded the way FastAPI does it. A `Response` is sent as it is, including its background task. A stream
    becomes a 200 `text/event-stream` with `Cache-Control: no-cache`: each piece is one event, encoded by
    `encode_event` and sent as soon as it is available, including the first. When the stream ends, so
    does the response; a stream without any pieces is a 200 without any events.

    Args:
        handler: a `RequestHandler` of exercise 3.1.
        request_body: what its `pre_process` is called with.
        request: the request, whose body has already been read.
        response_context: a pydantic model, or None. The model validates and serialises a result (a dict,
            or an instance of the model or of a subclass; not a `Response`), using aliases. Fields that
            the model does not have are left out at any depth; fields that are None are sent. A result
            that does not fit is the server's own mistake: a 500. Whether you validate an instance again
            is left to you. Streams are not affected.

    Raises:
        HTTPException: an action raised a `fastapi.HTTPException` before the first piece. It decides the
            status and the `detail`. You may return a response with these instead. No other `Exception`
            is raised.

    Any other `Exception`, including one raised because a result or a first piece cannot be encoded, becomes
    a 500 with a plain, non-empty body, text or JSON, that reveals nothing about the error's type, message,
    files or lines. The traceback is logged at level ERROR. What happens to NaN is left to you.

    After the first piece, the status has already been sent. From then on, any `Exception`, including an
    `HTTPException`, is logged in the same way and sent as `event: error`,
    `data: {"error": {"message": "..."}}`, with a message as plain as that of the 500. Then the response
    ends.

    When the client leaves, the work stops within a second, streaming or not, even before the first
    piece: an `async def` action is cancelled, the generator of `run` is closed, and a `def` action that
    has already started ends by itself, and nothing waits for it. `respond` may then return any
    `Response`. No traceback is logged because a client left (unless an action turns its cancellation into
    another error), and the next request works.
    """
    work = asyncio.create_task(_answer(handler, request_body, response_context))
    left = asyncio.create_task(_left(request))
    try:
        await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
        return Response(status_code=499) if work.cancelled() else work.result()
    finally:
        left.cancel()
        work.cancel()


async def _left(request):
    """Return once the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer(handler, request_body, response_context):
    try:
        result = await process(handler, request_body)
        if isinstance(result, Response):
            return result
        if hasattr(result, "__anext__"):
            return await _begun(result)
        if response_context is None:
            return JSONResponse(jsonable_encoder(result))
        model = TypeAdapter(response_context)
        return JSONResponse(model.dump_python(model.validate_python(result), mode="json", by_alias=True))
    except HTTPException:
        raise
    except Exception:
        _logger.exception("%s failed", type(handler).__name__)
        return PlainTextResponse(_FAILED, status_code=500)


async def _begun(pieces):
    """Return the response once the first piece is available: later errors cannot change the status."""
    try:
        first = await anext(pieces, _END)
        return _EventStream(pieces, b"" if first is _END else encode_event(first))
    except Exception:
        await pieces.aclose()
        raise


class _EventStream(StreamingResponse):
    """Closes its stream whatever happens, even if its body is never read."""

    def __init__(self, pieces, first):
        super().__init__(self._events(first), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._pieces = pieces

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()

    async def _events(self, first):
        try:
            yield first
            async for piece in self._pieces:
                yield encode_event(piece)
        except Exception:
            _logger.exception("a stream failed after its first piece")
            yield encode_event(ServerSentEvent(event="error", data={"error": {"message": _FAILED}}))
