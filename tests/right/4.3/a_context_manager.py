import time
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram


class Record:
    def __init__(self, began):
        self.began = began
        self.texts = []
        self.last = None

    def saw(self, piece, now):
        self.last = piece
        if piece.text:
            self.texts.append(now)


class MeasuredChat:
    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        def histogram(name):
            buckets = [0.001, 0.01, 0.1, 1, 10, 100, float("inf")]
            return Histogram(name, f"{name} of answers", registry=registry, buckets=buckets)

        self.chat_model, self.clock = chat_model, clock
        self.requests = Counter("llm_requests_total", "by outcome", ["outcome"], registry=registry)
        self.prompt = Counter("llm_prompt_tokens_total", "prompt tokens", registry=registry)
        self.completion = Counter("llm_completion_tokens_total", "completion tokens", registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "in flight", registry=registry)
        self.first = histogram("llm_time_to_first_token_seconds")
        self.between = histogram("llm_inter_token_latency_seconds")
        self.whole = histogram("llm_request_seconds")

    @contextmanager
    def measured(self):
        record = Record(self.clock())
        failed = False
        with self.in_flight.track_inprogress():
            try:
                yield record
            except Exception:
                failed = True
                raise
            finally:
                self.write_down(record, failed)

    def write_down(self, record, failed):
        self.whole.observe(self.clock() - record.began)
        if record.texts:
            self.first.observe(record.texts[0] - record.began)
        for one, next_one in zip(record.texts, record.texts[1:]):
            self.between.observe(next_one - one)
        reason = None
        if record.last is not None:
            reason = record.last.finish_reason
            self.prompt.inc(record.last.prompt_tokens)
            self.completion.inc(record.last.completion_tokens)
        self.requests.labels(outcome="error" if failed else reason or "cancelled").inc()

    async def chat(self, *args, **kwargs):
        with self.measured() as record:
            pieces = self.chat_model.chat(*args, **kwargs)
            try:
                async for piece in pieces:
                    record.saw(piece, self.clock())
                    yield piece
            finally:
                await pieces.aclose()
