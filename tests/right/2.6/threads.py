# a right answer: httpx's synchronous client, a thread for each request
import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
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


def one_request(url, body, clock):
    """(whether it went well, seconds to the first token, seconds between tokens)."""
    start = last = clock()
    first, gaps, name = None, [], "token"
    try:
        with httpx.stream("POST", url, json=body, timeout=None) as response:
            if response.status_code != httpx.codes.OK:
                return False, first, gaps
            for line in response.iter_lines():
                field, _, value = line.partition(":")
                if field == "event":
                    name = value.strip()
                elif field == "data" and name == "token":
                    now = clock()
                    if first is None:
                        first = now - start
                    else:
                        gaps.append(now - last)
                    last = now
                elif field == "data" and name == "done":
                    return True, first, gaps
                elif field == "data" and name == "error":
                    return False, first, gaps
                elif not line:
                    name = "token"
    except httpx.HTTPError:
        pass
    return False, first, gaps


def quantile(values, n):
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[n - 1]


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    body = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=clients) as pool:
        start = clock()
        jobs = [loop.run_in_executor(pool, one_request, url, body, clock) for _ in range(clients)]
        results = await asyncio.gather(*jobs)
        seconds = clock() - start
    good = [(first, gaps) for ok, first, gaps in results if ok]
    ttft = [first for first, _ in good if first is not None]
    itl = [gap for _, gaps in good for gap in gaps]
    tokens = sum(len(gaps) + (first is not None) for _, first, gaps in results)
    return Measurement(
        clients=clients,
        requests=clients,
        errors=clients - len(good),
        ttft_p50_s=quantile(ttft, 50),
        ttft_p95_s=quantile(ttft, 95),
        itl_p50_s=quantile(itl, 50),
        itl_p95_s=quantile(itl, 95),
        tokens_per_s=tokens / max(seconds, 1e-9),
    )
