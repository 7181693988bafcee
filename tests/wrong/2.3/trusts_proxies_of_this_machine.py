# caught by: test_forwarded_addresses_are_not_believed | says: X-Forwarded-For is believed
from chat_stream import create_app as create_stream_app
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIMiddleware
from slowapi.util import get_remote_address
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    app.state.limiter = Limiter(
        key_func=get_remote_address,
        default_limits=[limit],
        storage_uri=storage_uri,
        headers_enabled=True,
    )
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIMiddleware)
    app.add_middleware(ProxyHeadersMiddleware)
    return app
