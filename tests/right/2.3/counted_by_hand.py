# a right answer: only the limit's text is read by limits; own windows in memory and in Redis
import collections
import threading
import time

import redis
from chat_stream import create_app as create_stream_app
from limits import parse
from starlette.responses import PlainTextResponse


class InMemory:
    def __init__(self):
        self.times = collections.defaultdict(collections.deque)
        self.lock = threading.Lock()

    def hit(self, client, most, window_s):
        """0 if it is let in, else the seconds to wait."""
        with self.lock:
            times, now = self.times[client], time.monotonic()
            while times and times[0] <= now - window_s:
                times.popleft()
            if len(times) < most:
                times.append(now)
                return 0
            return times[0] + window_s - now


class InRedis:
    def __init__(self, uri):
        self.redis = redis.Redis.from_url(uri)

    def hit(self, client, most, window_s):
        key = f"chat:{client}"
        with self.redis.pipeline() as pipeline:
            count, _, left_ms = (
                pipeline.incr(key).expire(key, window_s, nx=True).pttl(key).execute()
            )
        return 0 if count <= most else left_ms / 1000


class Gate:
    def __init__(self, app, store, most, window_s):
        self.app, self.store, self.most, self.window_s = app, store, most, window_s

    async def __call__(self, scope, receive, send):
        answer = self.app
        if scope["type"] == "http":
            wait_s = self.store.hit(scope["client"][0], self.most, self.window_s)
            if wait_s:
                headers = {"Retry-After": str(min(self.window_s, int(wait_s) + 1))}
                answer = PlainTextResponse("Too many requests.", 429, headers)
        await answer(scope, receive, send)


def create_app(handler, *, limit="50/minute", storage_uri="memory://"):
    item = parse(limit)
    store = InMemory() if storage_uri.startswith("memory") else InRedis(storage_uri)
    app = create_stream_app(handler)
    app.add_middleware(Gate, store=store, most=item.amount, window_s=item.get_expiry())
    return app
