# a right answer: a task group, numpy's percentiles, events split at blank lines, more fields
import asyncio
import re
import time
from dataclasses import dataclass, field

import httpx
import numpy as np


@dataclass(frozen=True)
class Measurement:
    clients: int
    requests: int
    errors: int
    ttft_p50_s: float
    ttft_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    tokens_per_s: float
    token_times: list = field(default_factory=list, repr=False)


class Failed(Exception):
    pass


async def events(chunks):
    text = ""
    async for chunk in chunks:
        text += chunk
        *whole, text = re.split(r"\r?\n\r?\n", text)
        for event in whole:
            yield event


def is_named(event, name):
    return re.search(rf"^event: ?{name}\r?$", event, re.MULTILINE) is not None


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    payload = {"prompt": prompt, "max_new_tokens": max_new_tokens, "temperature": 0.0}

    async def one():
        times = [clock()]
        try:
            async with (
                httpx.AsyncClient(timeout=httpx.Timeout(None)) as http,
                http.stream("POST", url, json=payload) as response,
            ):
                if response.status_code != 200:
                    raise Failed(response.status_code)
                async for event in events(response.aiter_text()):
                    if is_named(event, "error"):
                        raise Failed(event)
                    if is_named(event, "done"):
                        return times, True
                    if re.search("^data:", event, re.MULTILINE):
                        times.append(clock())
            raise Failed("no done")
        except (httpx.TransportError, Failed):
            return times, False

    began = clock()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one()) for _ in range(clients)]
    took = clock() - began

    results = [task.result() for task in tasks]
    good = [times for times, ok in results if ok]
    ttft = [times[1] - times[0] for times in good if len(times) > 1]
    itl = [gap for times in good for gap in np.diff(times[1:])]

    def at(values, percent):
        return np.percentile(values, percent) if len(values) else float("nan")

    return Measurement(
        clients,
        len(tasks),
        clients - len(good),
        at(ttft, 50),
        at(ttft, 95),
        at(itl, 50),
        at(itl, 95),
        sum(len(times) - 1 for times, _ in results) / took if took else 0.0,
        good,
    )
