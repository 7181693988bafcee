# a right answer: aiter_lines, what the clients share in closures, and no more connections than were promised
import asyncio
import math
import time
from dataclasses import dataclass

import httpx


@dataclass
class Measurement:
    clients: int
    requests: int
    errors: int
    ttft_p50_s: float
    ttft_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    tokens_per_s: float


def percentile(values, q):
    if not values:
        return math.nan
    return sorted(values)[math.ceil(q * len(values)) - 1]


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    body = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    ttfts, gaps = [], []
    errors = tokens = 0

    async def one_client(http):
        nonlocal errors, tokens
        sent = clock()
        times = []
        finished = False
        name = ""
        try:
            async with http.stream("POST", url, json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("event:"):
                        name = line[6:].strip()
                        if name == "error":
                            raise httpx.HTTPError("an error event")
                    elif line.startswith("data:"):
                        if name == "done":
                            finished = True
                        elif name != "error":
                            times.append(clock())
                    elif line == "":
                        name = ""
        except httpx.HTTPError:
            finished = False
        tokens += len(times)
        if not finished:
            errors += 1
            return
        if times:
            ttfts.append(times[0] - sent)
        gaps.extend(b - a for a, b in zip(times, times[1:]))

    limits = httpx.Limits(max_connections=120)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        start = clock()
        await asyncio.gather(*[one_client(http) for _ in range(clients)])
        duration = clock() - start
    return Measurement(
        clients=clients,
        requests=clients,
        errors=errors,
        ttft_p50_s=percentile(ttfts, 0.50),
        ttft_p95_s=percentile(ttfts, 0.95),
        itl_p50_s=percentile(gaps, 0.50),
        itl_p95_s=percentile(gaps, 0.95),
        tokens_per_s=tokens / duration if duration else 0.0,
    )
