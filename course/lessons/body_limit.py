"""A limit for request bodies, around an app that may have no limit, or one that does not say what it is."""

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import JSONResponse

MOST_BYTES = 1_000_000


def refusal(words):
    """The 413, in the form of FastAPI's own errors."""
    return JSONResponse({"detail": words}, 413)


class BodyLimit:
    """An app around `app` that reads at most MOST_BYTES of a body, and whose 413 says how many are allowed.

    Starlette's own 413 says only "Content Too Large", even with FastAPI(max_body_size=...). It is sent
    outside the app's middleware and exception handlers, and so is this one.

    Args:
        refusal: makes the response from a message.
    """

    def __init__(self, app, refusal=refusal):
        self.refusal = refusal
        self.app = RequestBodyLimitMiddleware(app, max_body_size=MOST_BYTES)

    async def __call__(self, scope, receive, send):
        too_large = False

        async def send_in_words(message):
            nonlocal too_large
            if message["type"] == "http.response.start" and message["status"] == 413:
                too_large = True
                words = f"The body may have at most {MOST_BYTES:,} bytes."
                await self.refusal(words)(scope, receive, send)
            elif not too_large:
                await send(message)

        await self.app(scope, receive, send_in_words)
