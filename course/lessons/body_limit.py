"""A limit for the body of a request, around an app that may have none, or one without words."""

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.responses import JSONResponse

MOST_BYTES = 1_000_000


def refusal(words):
    """The 413, as FastAPI words its own errors."""
    return JSONResponse({"detail": words}, 413)


class BodyLimit:
    """An app around `app`: no more than MOST_BYTES are read, and the 413 says how many may arrive.

    Starlette's own 413 says only "Content Too Large", also where FastAPI(max_body_size=...) asks
    for it. That one is outside of an app's middleware and exception handlers: this is outside too.

    Args:
        refusal: makes the response from a sentence.
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
