"""Exercise 4.3: what happens in a server, as figures that Prometheus reads."""

import time
from contextlib import aclosing

from prometheus_client import Counter, Gauge, Histogram


class MeasuredChat:
    """A chat model as in exercise 3.6 that wraps another one and counts what passes through it.

    Its metrics, in the registry that it is given:

        llm_requests_total{outcome}       counter: answers that have ended, by outcome
        llm_prompt_tokens_total           counter: from the last object seen of each answer,
        llm_completion_tokens_total         whatever the outcome
        llm_requests_in_flight            gauge: answers that are being read
        llm_time_to_first_token_seconds   histogram: from the call to the first object with text
        llm_inter_token_latency_seconds   histogram: between objects with text of the same answer
        llm_request_seconds               histogram: from the call to the end, whatever the outcome

    An object with text is one whose text is not empty: whitespace is text, too.

    The outcome is the `finish_reason`, `stop` or `length`, once the object that has it has been handed out; `error`
    if an exception was raised, even by the inner `chat` itself; and `cancelled` if the reader left before that, by
    `aclose()` or by being cancelled while it waited. There are no other outcomes and no other labels. Each answer
    counts once, however often it is closed.

    An answer ends when the object with the `finish_reason` is handed out or, if you prefer, when the inner answer
    ends after that; when an error is raised; or when the reader leaves. From then on, the gauge is one lower, and
    everything about the answer has been counted. An answer that no one began to read is not counted anywhere. Each
    histogram has a bucket boundary from 1 ms to below 2 ms and one from 10 s to below 30 s.

    Not graded: an answer that is dropped without `aclose()`; one that ends without a `finish_reason`; an error
    after the object with the `finish_reason`, or while the answer is being closed; an inner answer that itself
    raises CancelledError or another BaseException that is not an Exception; whether the time that closing takes counts
    in `llm_request_seconds`; two MeasuredChats on one registry.

    Example:
        >>> registry = CollectorRegistry()
        >>> chat_model = MeasuredChat(ChatModel(model, tokenizer), registry)
        >>> async for piece in chat_model.chat([{"role": "user", "content": "你好"}]):
        ...     print(piece.text, end="")
        >>> print(generate_latest(registry).decode())
    """

    def __init__(self, chat_model, registry, *, clock=time.perf_counter):
        """
        Args:
            chat_model: has `chat` as in exercise 3.6. What that returns can be read with `async for`, and has
                `__anext__` and `aclose`; nothing more is promised. Its objects have the four attributes of a Piece.
            registry: a `prometheus_client.CollectorRegistry`. Two MeasuredChats with separate registries do not
                share figures.
            clock: returns the time in seconds, which may be 0.0. No other clock is read. It is read when an answer
                begins, when an object is handed out, and at the end; how often is up to you.
        """
        self._chat_model, self._clock = chat_model, clock
        self._requests = Counter("llm_requests_total", "Answers that have ended.", ["outcome"], registry=registry)
        self._prompt_tokens = Counter("llm_prompt_tokens_total", "Tokens of prompts.", registry=registry)
        self._completion_tokens = Counter("llm_completion_tokens_total", "Tokens of answers.", registry=registry)
        self._in_flight = Gauge("llm_requests_in_flight", "Answers that are being read.", registry=registry)
        self._first_token_s, self._inter_token_s, self._request_s = (
            Histogram(name, what, buckets=_BUCKETS_S, registry=registry)
            for name, what in (
                ("llm_time_to_first_token_seconds", "From an answer's call to its first text."),
                ("llm_inter_token_latency_seconds", "Between two texts of one answer."),
                ("llm_request_seconds", "From an answer's call to its end."),
            )
        )

    async def chat(self, messages, **options):
        """Pass on what the inner `chat` yields. Read it with `async for`.

        Arguments, each object as it arrives, and errors pass through unchanged. The inner answer is closed by the
        time `aclose()` returns, even if the inner `chat` was called and no one has begun to read.

        Args:
            messages, options: as in exercise 3.6.

        Yields:
            The inner answer's own objects, not copies, each as soon as it arrives. The time of an object is the
            time at which it is handed out, so the time that a slow reader takes in between counts as well. An
            answer begins at the call or when its first object is requested, whichever you like.

        Raises:
            Whatever the inner `chat` or its answer raises.
        """
        began = self._clock()
        outcome, last, text_at = "cancelled", None, None
        self._in_flight.inc()
        try:
            async with aclosing(self._chat_model.chat(messages, **options)) as pieces:
                async for last in pieces:
                    if last.text:
                        now = self._clock()
                        if text_at is None:
                            self._first_token_s.observe(now - began)
                        else:
                            self._inter_token_s.observe(now - text_at)
                        text_at = now
                    # a reader who leaves at the `yield` has got this object
                    outcome = last.finish_reason or outcome
                    yield last
        except Exception:  # neither GeneratorExit nor CancelledError: those are readers who leave
            outcome = "error"
            raise
        finally:
            self._in_flight.dec()
            self._requests.labels(outcome).inc()
            self._request_s.observe(self._clock() - began)
            if last is not None:
                self._prompt_tokens.inc(last.prompt_tokens)
                self._completion_tokens.inc(last.completion_tokens)


_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
