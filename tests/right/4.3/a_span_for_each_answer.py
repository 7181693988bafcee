import dataclasses
import time
from types import SimpleNamespace

from prometheus_client import Counter, Gauge, Histogram
from sequence import Piece


@dataclasses.dataclass
class Span:
    """What is known of one answer while it goes on."""

    metrics: SimpleNamespace
    clock: object
    start: float = 0.0
    last: Piece = dataclasses.field(default_factory=lambda: Piece("", 0, 0))
    last_text_time: float | None = None
    error: BaseException | None = None

    def __enter__(self):
        self.start = self.clock()
        self.metrics.in_flight.inc()
        return self

    def handed(self, piece):
        self.last = piece
        if not piece.text:
            return piece
        now = self.clock()
        if self.last_text_time is None:
            self.metrics.ttft.observe(now - self.start)
        else:
            self.metrics.itl.observe(now - self.last_text_time)
        self.last_text_time = now
        return piece

    def __exit__(self, kind, error, traceback):
        self.metrics.in_flight.dec()
        if kind is not None and issubclass(kind, Exception):
            outcome = "error"
        else:
            outcome = self.last.finish_reason or "cancelled"
        self.metrics.requests.labels(outcome=outcome).inc()
        self.metrics.prompt.inc(self.last.prompt_tokens)
        self.metrics.completion.inc(self.last.completion_tokens)
        self.metrics.seconds.observe(self.clock() - self.start)
        return False


class MeasuredChat:
    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.chat_model = chat_model
        self.clock = clock
        buckets = (0.001, 0.01, 0.1, 1.0, 10.0)
        self.metrics = SimpleNamespace(
            requests=Counter("llm_requests_total", "Requests", ["outcome"], registry=registry),
            prompt=Counter("llm_prompt_tokens_total", "Prompt tokens", registry=registry),
            completion=Counter("llm_completion_tokens_total", "Completion tokens", registry=registry),
            in_flight=Gauge("llm_requests_in_flight", "Requests in flight", registry=registry),
            ttft=Histogram("llm_time_to_first_token_seconds", "TTFT", registry=registry, buckets=buckets),
            itl=Histogram("llm_inter_token_latency_seconds", "ITL", registry=registry, buckets=buckets),
            seconds=Histogram("llm_request_seconds", "Whole requests", registry=registry, buckets=buckets),
        )

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        with Span(self.metrics, self.clock) as span:
            inner = self.chat_model.chat(
                messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
            )
            try:
                async for piece in inner:
                    yield span.handed(piece)
            finally:
                await inner.aclose()
