# caught by: test_each_address_has_a_count_of_its_own | says: with a cookie the same address has a new count
from chat_stream import create_app as create_stream_app
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.middleware import SlowAPIMiddleware


def key(request):
    return request.cookies.get("session", request.client.host)


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    app = create_stream_app(handler)
    options = {"storage_uri": storage_uri, "headers_enabled": True}
    app.state.limiter = Limiter(key_func=key, default_limits=[limit], **options)
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    app.add_middleware(SlowAPIMiddleware)
    return app
