import time

from prometheus_client import Counter, Gauge, Histogram

EDGES = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60]


class MeasuredChat:
    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.chat_model = chat_model
        self.clock = clock
        self.requests = Counter("llm_requests", "Requests", labelnames=("outcome",), registry=registry)
        for outcome in ("stop", "length", "error", "cancelled"):
            self.requests.labels(outcome=outcome)
        self.prompt_tokens = Counter("llm_prompt_tokens", "Prompt tokens", registry=registry)
        self.completion_tokens = Counter("llm_completion_tokens", "Completion tokens", registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "Requests in flight", registry=registry)
        self.ttft = Histogram("llm_time_to_first_token_seconds", "TTFT", buckets=EDGES, registry=registry)
        self.itl = Histogram("llm_inter_token_latency_seconds", "ITL", buckets=EDGES, registry=registry)
        self.seconds = Histogram("llm_request_seconds", "Seconds", buckets=EDGES, registry=registry)

    def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        options = dict(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
        return MeasuredAnswer(self, messages, options)


class MeasuredAnswer:
    def __init__(self, owner, messages, options):
        self.owner = owner
        self.messages = messages
        self.options = options
        self.state = "new"
        self.inner = None
        self.began = self.text_at = None
        self.piece = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.state == "over":
            raise StopAsyncIteration
        try:
            if self.state == "new":
                self.state = "running"
                self.began = self.owner.clock()
                self.owner.in_flight.inc()
                self.inner = self.owner.chat_model.chat(self.messages, **self.options)
            piece = await self.inner.__anext__()
        except StopAsyncIteration:
            self.over("stop")
            raise
        except Exception:
            self.over("error")
            raise
        except BaseException:
            self.over("cancelled")
            raise
        if piece.text:
            now = self.owner.clock()
            if self.text_at is None:
                self.owner.ttft.observe(now - self.began)
            else:
                self.owner.itl.observe(now - self.text_at)
            self.text_at = now
        self.piece = piece
        return piece

    async def aclose(self):
        if self.inner is not None:
            await self.inner.aclose()
        if self.state == "running":
            self.over("cancelled")
        self.state = "over"

    def over(self, outcome):
        self.state = "over"
        owner, piece = self.owner, self.piece
        if piece is not None:
            owner.prompt_tokens.inc(piece.prompt_tokens)
            owner.completion_tokens.inc(piece.completion_tokens)
            if outcome != "error" and piece.finish_reason:
                outcome = piece.finish_reason
        owner.requests.labels(outcome=outcome).inc()
        owner.seconds.observe(owner.clock() - self.began)
        owner.in_flight.dec()
