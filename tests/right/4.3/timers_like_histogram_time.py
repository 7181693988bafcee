import asyncio
import time
from contextlib import AsyncExitStack

from prometheus_client import Counter, Gauge, Histogram


class Timer:
    """Observes into a histogram, as Histogram.time() does, by the clock that it is given."""

    def __init__(self, histogram, clock):
        self.histogram, self.clock = histogram, clock
        self.start = clock()

    def stop(self, *_):
        self.histogram.observe(self.clock() - self.start)


class MeasuredChat:
    BUCKETS = (0.0015, 0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15)

    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self._inner = chat_model
        self._clock = clock
        kw = {"registry": registry}
        self._total = Counter("llm_requests_total", "Requests.", ("outcome",), **kw)
        self._prompt = Counter("llm_prompt_tokens_total", "Prompt tokens.", **kw)
        self._completion = Counter("llm_completion_tokens_total", "Completion tokens.", **kw)
        self._now = Gauge("llm_requests_in_flight", "In flight.", **kw)
        kw["buckets"] = self.BUCKETS
        self._first = Histogram("llm_time_to_first_token_seconds", "To the first token.", **kw)
        self._between = Histogram("llm_inter_token_latency_seconds", "Between tokens.", **kw)
        self._whole = Histogram("llm_request_seconds", "Whole request.", **kw)

    async def chat(self, messages, **options):
        async with AsyncExitStack() as stack:
            self._now.inc()
            stack.callback(self._now.dec)
            stack.callback(Timer(self._whole, self._clock).stop)
            seen = []
            outcome = None

            def count():
                if seen:
                    self._prompt.inc(seen[0].prompt_tokens)
                    self._completion.inc(seen[0].completion_tokens)
                self._total.labels(outcome).inc()

            stack.callback(count)
            timer = Timer(self._first, self._clock)
            try:
                pieces = self._inner.chat(messages, **options)
                stack.push_async_callback(pieces.aclose)
                while True:
                    try:
                        piece = await pieces.__anext__()
                    except StopAsyncIteration:
                        return
                    seen[:] = [piece]
                    if piece.text:
                        timer.stop()
                        timer = Timer(self._between, self._clock)
                    if piece.finish_reason is not None:
                        outcome = piece.finish_reason
                    yield piece
            except (asyncio.CancelledError, GeneratorExit):
                outcome = outcome or "cancelled"
                raise
            except Exception:
                outcome = "error"
                raise
