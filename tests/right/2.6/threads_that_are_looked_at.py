# a right answer: http.client in a thread for each request, which the coroutine looks at again and again
import asyncio
import http.client
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass
from statistics import median


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


def p95(values):
    values = sorted(values)
    return values[-(-95 * len(values) // 100) - 1] if values else 0.0


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    u = urllib.parse.urlparse(url)
    body = json.dumps({"prompt": prompt, "max_new_tokens": max_new_tokens})
    results = [None] * clients

    def run(i):
        start, times, ok = clock(), [], False
        try:
            c = http.client.HTTPConnection(u.hostname, u.port)
            c.request("POST", u.path, body, {"Content-Type": "application/json"})
            r = c.getresponse()
            if r.status == 200:
                event = ""
                for line in r:
                    line = line.decode().strip()
                    if line.startswith("event:"):
                        event = line[6:].strip()
                    elif line.startswith("data:"):
                        if event == "done":
                            ok = True
                        elif event == "error":
                            ok = False
                            break
                        else:
                            times.append(clock())
                    elif not line:
                        event = ""
        except Exception:
            ok = False
        results[i] = (start, times, ok)

    begin = clock()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(clients)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        await asyncio.sleep(0.01)
    total = clock() - begin
    ttfts, itls, tokens, errors = [], [], 0, 0
    for start, times, ok in results:
        tokens += len(times)
        if not ok:
            errors += 1
            continue
        if times:
            ttfts.append(times[0] - start)
        for i in range(1, len(times)):
            itls.append(times[i] - times[i - 1])
    return Measurement(
        clients,
        clients,
        errors,
        median(ttfts) if ttfts else 0.0,
        p95(ttfts),
        median(itls) if itls else 0.0,
        p95(itls),
        tokens / total if total > 0 else 0.0,
    )
