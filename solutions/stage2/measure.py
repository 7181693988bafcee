"""Exercise 2.6: how long do users wait? A load client of your own."""

import asyncio
import itertools
import math
import time
from dataclasses import dataclass

import httpx


@dataclass
class Measurement:
    """What users saw, `clients` of them, when all asked at the same moment.

    `requests` were sent and `errors` of them failed. The times are in seconds, from those that
    did not fail: TTFT is the time to the first token, ITL the inter-token latency; p50 is the median,
    p95 the smallest value that at least 95 % of them do not exceed (or numpy's interpolation). Where
    there is no value at all they are NaN, None or 0.0.
    """

    clients: int
    requests: int
    errors: int
    ttft_p50_s: float
    ttft_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    tokens_per_s: float


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    """Send `clients` requests to a server at once, and measure how their tokens come.

    A request fails if there is no server, if the status is a 4xx or 5xx, if an `error` event comes,
    or if the answer ends without its `done` event. (Not graded: an answer without a token, a `done` that
    says another number of pieces than came, a connection that breaks after `done`, and line separators
    such as U+2028 within a token.)

    - time to first token: from sending a request to its first token event;
    - inter-token latency: from one token event of a request to the next one of the same request;
    - tokens per second: all token events, those of failed requests too, divided by the time of the
      whole run.

    All requests are under way at once, even 120 of them. A server that is silent for half a minute
    has not failed.

    Args:
        url: the whole address of a `/chat_stream`, the endpoint of exercise 2.2.
        clients: how many requests run at the same time, one for each client.
        prompt, max_new_tokens: what each of them asks.
        clock: `clock()` is the time in seconds. Every time is read from it.

    Returns:
        Measurement: even if some requests, or all of them, failed.

    Example:
        >>> url = "http://127.0.0.1:8000/chat_stream"
        >>> await measure(url, clients=4, prompt="Tell me a story.", max_new_tokens=64)
        Measurement(clients=4, requests=4, errors=0, ttft_p50_s=0.31, ttft_p95_s=0.62, ...)
    """
    body = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    # as httpx comes, the 101st request would wait for a connection, and 5 s of silence be an error
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=None) as http:
        start = clock()
        answers = await asyncio.gather(*(_ask(http, url, body, clock) for _ in range(clients)))
        seconds = clock() - start

    whole = [answer for answer in answers if answer.done]
    ttft = [answer.arrived[0] - answer.sent for answer in whole if answer.arrived]
    itl = [b - a for answer in whole for a, b in itertools.pairwise(answer.arrived)]
    tokens = sum(len(answer.arrived) for answer in answers)
    return Measurement(
        clients=clients,
        requests=len(answers),
        errors=len(answers) - len(whole),
        ttft_p50_s=_percentile(ttft, 50),
        ttft_p95_s=_percentile(ttft, 95),
        itl_p50_s=_percentile(itl, 50),
        itl_p95_s=_percentile(itl, 95),
        tokens_per_s=tokens / seconds if seconds > 0 else math.nan,
    )


@dataclass
class _Answer:
    sent: float
    arrived: list[float]
    """When each token event came."""
    done: bool = False


async def _ask(http, url, body, clock):
    answer = _Answer(sent=clock(), arrived=[])
    try:
        async with http.stream("POST", url, json=body) as response:
            if response.status_code != 200:
                return answer
            async for name, _data in _events(response):
                if name == "message":
                    answer.arrived.append(clock())
                elif name in ("done", "error"):
                    answer.done = name == "done"
                    break
    except httpx.HTTPError:
        pass  # no server, or the connection broke: it is not done
    return answer


async def _events(response):
    """(name, data) of each server-sent event; one without a name is a "message".

    A piece of bytes from the network is not an event: it can hold several, or part of one.
    """
    name, data, rest = "message", [], b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            field, _, value = line.removesuffix(b"\r").decode().partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif line in (b"", b"\r"):  # the blank line that ends an event
                if data:
                    yield name, "\n".join(data)
                name, data = "message", []
            # what is left is a comment, such as a ping, or a field that we have no use for


def _percentile(values, percent):
    """The smallest of the values that at least `percent` % of them do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
