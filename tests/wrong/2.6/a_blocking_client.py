# caught by: test_all_clients_run_at_once | says: the requests are sent one after another
import math
import asyncio
import json
import statistics
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


async def user(url, prompt, max_new_tokens, clock):
    began = clock()
    times, event = [], None
    try:
        # an ordinary client in a coroutine: while it waits, nobody else runs
        with httpx.stream(
            "POST", url, json={"prompt": prompt, "max_new_tokens": max_new_tokens}, timeout=60
        ) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                if line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    if event == "done":
                        return began, times, data["pieces"] == len(times)
                    if event == "error":
                        return began, times, False
                    times.append(clock())
                if not line:
                    event = None
    except httpx.HTTPError as error:
        print("failed:", error)
    return began, times, False


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    began = clock()
    users = [user(url, prompt, max_new_tokens, clock) for _ in range(clients)]
    results = await asyncio.gather(*users)
    ended = clock()
    ttft, itl = [], []
    for sent, times, good in results:
        if good:
            ttft.append(times[0] - sent)
            itl += [after - before for before, after in zip(times, times[1:])]
    return Measurement(
        clients=clients,
        requests=len(results),
        errors=sum(not good for _, _, good in results),
        ttft_p50_s=statistics.median(ttft) if ttft else 0.0,
        ttft_p95_s=sorted(ttft)[math.ceil(0.95 * len(ttft)) - 1] if ttft else 0.0,
        itl_p50_s=statistics.median(itl) if itl else 0.0,
        itl_p95_s=sorted(itl)[math.ceil(0.95 * len(itl)) - 1] if itl else 0.0,
        tokens_per_s=sum(len(times) for _, times, _ in results) / ((ended - began) or 1.0),
    )
