import time

import prometheus_client as prom

BUCKETS = tuple(0.001 * 2**n for n in range(16))


class MeasuredChat:
    """All is begun when chat is called; what nobody reads is only closed."""

    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.model, self.clock, self.open = chat_model, clock, set()
        self.m = {
            "requests": prom.Counter("llm_requests_total", "requests", ["outcome"], registry=registry),
            "prompt": prom.Counter("llm_prompt_tokens_total", "prompt tokens", registry=registry),
            "completion": prom.Counter("llm_completion_tokens_total", "completion tokens", registry=registry),
        }
        gauge = prom.Gauge("llm_requests_in_flight", "now", registry=registry)
        gauge.set_function(lambda: len(self.open))
        for short, name in (
            ("first", "llm_time_to_first_token_seconds"),
            ("between", "llm_inter_token_latency_seconds"),
            ("whole", "llm_request_seconds"),
        ):
            self.m[short] = prom.Histogram(name, name, buckets=BUCKETS, registry=registry)

    def chat(self, messages, **kwargs):
        start = self.clock()
        try:
            inner = self.model.chat(messages, **kwargs)
        except Exception:
            self.count("error", start, None)
            raise
        return Reader(self, inner, start)

    def count(self, outcome, start, last):
        self.m["requests"].labels(outcome).inc()
        self.m["whole"].observe(self.clock() - start)
        if last is not None:
            self.m["prompt"].inc(last.prompt_tokens)
            self.m["completion"].inc(last.completion_tokens)


class Reader:
    def __init__(self, owner, inner, start):
        self.owner, self.inner, self.start = owner, inner, start
        self.last = self.previous = None
        self.done = False

    def __aiter__(self):
        return self

    def finish(self, outcome):
        if not self.done:
            self.done = True
            self.owner.open.discard(self)
            reason = getattr(self.last, "finish_reason", None)
            self.owner.count(outcome if outcome == "error" else reason or outcome, self.start, self.last)

    async def __anext__(self):
        if not self.done:
            self.owner.open.add(self)
        outcome = "cancelled"
        try:
            self.last = await anext(self.inner)
            outcome = None
        except StopAsyncIteration:
            outcome = "stop"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            if outcome:
                self.finish(outcome)
        if self.last.text:
            now = self.owner.clock()
            if self.previous is None:
                self.owner.m["first"].observe(now - self.start)
            else:
                self.owner.m["between"].observe(now - self.previous)
            self.previous = now
        return self.last

    async def aclose(self):
        try:
            await self.inner.aclose()
        finally:
            if self in self.owner.open:
                self.finish("cancelled")
