import time
from collections.abc import AsyncGenerator

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)


class MeasuredChat:
    """Tokens are counted with each object, and the outcome with the one that has a finish_reason."""

    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.chat_model, self.clock, self.registry = chat_model, clock, registry
        self.requests = Counter("llm_requests_total", "Finished", ["outcome"], registry=registry)
        self.prompt_tokens = Counter("llm_prompt_tokens_total", "In", registry=registry)
        self.completion_tokens = Counter("llm_completion_tokens_total", "Out", registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "Now", registry=registry)
        self.first = self.seconds("llm_time_to_first_token_seconds", "First token")
        self.between = self.seconds("llm_inter_token_latency_seconds", "Between tokens")
        self.whole = self.seconds("llm_request_seconds", "All")

    def seconds(self, name, text):
        return Histogram(name, text, buckets=SECONDS, registry=self.registry)

    def chat(self, messages, **options):
        return Counted(self, lambda: self.chat_model.chat(messages, **options))


class Counted(AsyncGenerator):
    def __init__(self, m, open_inner):
        self.m, self.open_inner = m, open_inner
        self.inner = None
        self.began = self.text_at = None
        self.running = False
        self.tokens = (0, 0)

    def ended(self, outcome):
        if self.running:
            self.running = False
            self.m.in_flight.dec()
            self.m.requests.labels(outcome).inc()
            self.m.whole.observe(self.m.clock() - self.began)

    async def asend(self, value):
        if self.began is None:
            self.began, self.running = self.m.clock(), True
            self.m.in_flight.inc()
        try:
            if self.inner is None:
                self.inner = self.open_inner()
            piece = await self.inner.__anext__()
        except BaseException as error:
            self.ended("error" if isinstance(error, Exception) else "cancelled")
            raise
        if piece.text:
            now, before = self.m.clock(), self.text_at
            self.text_at = now
            if before is None:
                self.m.first.observe(now - self.began)
            else:
                self.m.between.observe(now - before)
        tokens = (piece.prompt_tokens, piece.completion_tokens)
        self.m.prompt_tokens.inc(tokens[0] - self.tokens[0])
        self.m.completion_tokens.inc(tokens[1] - self.tokens[1])
        self.tokens = tokens
        if piece.finish_reason:
            self.ended(piece.finish_reason)
        return piece

    async def athrow(self, typ, val=None, tb=None):
        raise val or typ

    async def aclose(self):
        if self.inner is not None:
            await self.inner.aclose()
        self.ended("cancelled")
