"""Exercise 2.6: a load client that measures how long users wait."""

import asyncio
import itertools
import math
import time
from dataclasses import dataclass

import httpx


@dataclass
class Measurement:
    """What `clients` users saw when they all asked at the same time.

    `requests` were sent, and `errors` of them failed. The times are in seconds, from the requests that
    did not fail: TTFT is the time to first token, ITL the inter-token latency. p50 is the median (of
    an even number of values, either of the middle two or anything between them), p95 the smallest
    value that at least 95% of the values do not exceed (or numpy's interpolation). Where there are no
    values at all, the result is NaN, None or 0.0.
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
    """Send `clients` requests to a server at once, and measure when their tokens arrive.

    A request fails if there is no server, if the status is a 4xx or 5xx, if an `error` event arrives,
    or if the answer ends without its `done` event. (Not graded: an answer without tokens, a `done`
    with the wrong number of pieces, a connection that breaks after `done`, and line separators such as
    U+2028 within a token.)

    - time to first token: from sending a request to its first token event;
    - inter-token latency: from one token event to the next one of the same request;
    - tokens per second: all token events, including those of failed requests, divided by the duration
      of the whole run.

    All requests run at the same time, even 120 of them. A server that is silent for half a minute
    has not failed.

    Args:
        url: the full address of a `/chat_stream`, the endpoint of exercise 2.2.
        clients: the number of requests that run at the same time, one per client.
        prompt, max_new_tokens: what each request asks for.
        clock: `clock()` returns the time in seconds. All times are read from it.

    Returns:
        A Measurement, even if some or all of the requests failed.

    Example:
        >>> url = "http://127.0.0.1:8000/chat_stream"
        >>> await measure(url, clients=4, prompt="Tell me a story.", max_new_tokens=64)
        Measurement(clients=4, requests=4, errors=0, ttft_p50_s=0.31, ttft_p95_s=0.62, ...)
    """
    body = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    # by default, httpx lets the 101st request wait for a connection, and 5 s of silence is an error
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
    """When each token event arrived."""
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
        pass  # no server, or a broken connection: not done
    return answer


async def _events(response):
    """Yield (name, data) for each server-sent event; an event without a name is a "message".

    A chunk of bytes from the network is not an event: it can contain several, or part of one.
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
            # anything else is a comment, such as a ping, or a field that is not needed here


def _percentile(values, percent):
    """The smallest value that at least `percent` % of the values do not exceed."""
    if not values:
        return math.nan
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
