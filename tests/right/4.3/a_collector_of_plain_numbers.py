import bisect
import time
from collections import Counter
from contextlib import aclosing

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily


class Times:
    edges = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]

    def __init__(self):
        self.counts = [0] * (len(self.edges) + 1)
        self.total = 0.0

    def add(self, seconds):
        self.counts[bisect.bisect_left(self.edges, seconds)] += 1
        self.total += seconds

    def family(self, name, text):
        so_far, buckets = 0, []
        for edge, count in zip([*map(str, self.edges), "+Inf"], self.counts):
            so_far += count
            buckets.append((edge, so_far))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class MeasuredChat:
    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        self.chat_model, self.clock = chat_model, clock
        self.outcomes = Counter()
        self.prompt_tokens = self.completion_tokens = self.running = 0
        self.first, self.between, self.whole = Times(), Times(), Times()
        registry.register(self)

    def collect(self):
        requests = CounterMetricFamily("llm_requests", "Answers", labels=["outcome"])
        for outcome, count in self.outcomes.items():
            requests.add_metric([outcome], count)
        yield requests
        yield CounterMetricFamily("llm_prompt_tokens", "Prompt tokens", value=self.prompt_tokens)
        yield CounterMetricFamily("llm_completion_tokens", "Completion tokens", value=self.completion_tokens)
        yield GaugeMetricFamily("llm_requests_in_flight", "In flight", value=self.running)
        yield self.first.family("llm_time_to_first_token_seconds", "To the first token")
        yield self.between.family("llm_inter_token_latency_seconds", "Between tokens")
        yield self.whole.family("llm_request_seconds", "Whole")

    async def chat(self, messages, **options):
        moments = [self.clock()]
        piece, failed = None, False
        self.running += 1
        try:
            async with aclosing(self.chat_model.chat(messages, **options)) as answer:
                async for piece in answer:
                    if piece.text:
                        moments.append(self.clock())
                        times = self.first if len(moments) == 2 else self.between
                        times.add(moments[-1] - moments[-2])
                    yield piece
        except Exception:
            failed = True
            raise
        finally:
            self.running -= 1
            self.whole.add(self.clock() - moments[0])
            if failed:
                self.outcomes["error"] += 1
            elif piece is None or not piece.finish_reason:
                self.outcomes["cancelled"] += 1
            else:
                self.outcomes[piece.finish_reason] += 1
            self.prompt_tokens += piece.prompt_tokens if piece else 0
            self.completion_tokens += piece.completion_tokens if piece else 0
