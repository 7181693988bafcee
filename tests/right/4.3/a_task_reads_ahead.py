import asyncio
import time

from prometheus_client import Counter, Gauge, Histogram


class MeasuredChat:
    """A task of its own reads the inner answer; the reader takes from a queue of one."""

    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.chat_model, self.clock = chat_model, clock
        buckets = [0.001, 0.002, 0.004, 0.01, 0.05, 0.25, 1, 4, 16]
        self.requests = Counter("llm_requests", "Answers by outcome", ["outcome"], registry=registry)
        self.prompt = Counter("llm_prompt_tokens", "Tokens of prompts", registry=registry)
        self.completion = Counter("llm_completion_tokens", "Tokens of answers", registry=registry)
        self.in_flight = Gauge("llm_requests_in_flight", "Answers now", registry=registry)
        self.first = Histogram("llm_time_to_first_token_seconds", "First", registry=registry, buckets=buckets)
        self.between = Histogram("llm_inter_token_latency_seconds", "Between", registry=registry, buckets=buckets)
        self.whole = Histogram("llm_request_seconds", "Whole", registry=registry, buckets=buckets)

    async def chat(self, messages, **options):
        started = self.clock()
        queue = asyncio.Queue(maxsize=1)

        async def pump():
            pieces, end = None, ("end", None)
            try:
                pieces = self.chat_model.chat(messages, **options)
                async for piece in pieces:
                    await queue.put(("piece", piece))
            except Exception as error:
                end = ("error", error)
            finally:
                if pieces is not None:
                    await pieces.aclose()
            await queue.put(end)

        self.in_flight.inc()
        task = asyncio.create_task(pump())
        result, last, at = "cancelled", None, None
        try:
            while True:
                kind, value = await queue.get()
                if kind == "end":
                    break
                if kind == "error":
                    result = "error"
                    raise value
                last = value
                if last.text:
                    now = self.clock()
                    (self.first if at is None else self.between).observe(now - (started if at is None else at))
                    at = now
                if last.finish_reason:
                    result = last.finish_reason
                yield last
        finally:
            self.in_flight.dec()
            self.whole.observe(self.clock() - started)
            self.requests.labels(outcome=result).inc()
            if last is not None:
                self.prompt.inc(last.prompt_tokens)
                self.completion.inc(last.completion_tokens)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
