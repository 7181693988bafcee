# a right answer: no HTTP library, only asyncio's streams; one time for all events of a chunk
import asyncio
import json
import math
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Measurement:
    clients: int = 0
    requests: int = 0
    errors: int = 0
    ttft_p50_s: float = 0.0
    ttft_p95_s: float = 0.0
    itl_p50_s: float = 0.0
    itl_p95_s: float = 0.0
    tokens_per_s: float = 0.0


async def chunks(reader):
    while size := int(await reader.readline(), 16):
        data = await reader.readexactly(size)
        await reader.readline()
        yield data


async def ask(url, body, clock, times):
    parts = urlsplit(url)
    data = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    sent = clock()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(head.encode() + data)
        await writer.drain()
        if int((await reader.readline()).split()[1]) != 200:
            raise ConnectionError("not 200")
        while (await reader.readline()).strip():
            pass
        buffer = b""
        async for chunk in chunks(reader):
            now = clock()
            buffer = (buffer + chunk).replace(b"\r\n", b"\n")
            while b"\n\n" in buffer:
                event, buffer = buffer.split(b"\n\n", 1)
                lines = [line for line in event.split(b"\n") if not line.startswith(b":")]
                if b"event: done" in lines:
                    return sent
                if b"event: error" in lines:
                    raise ConnectionError(event)
                if lines:
                    times.append(now)
        raise ConnectionError("cut")
    finally:
        writer.close()


def percentile(values, percent):
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else 0.0


async def measure(url, *, clients, prompt, max_new_tokens, clock=time.perf_counter):
    body = {"max_new_tokens": max_new_tokens, "prompt": prompt}
    all_times = [[] for _ in range(clients)]
    start = clock()
    results = await asyncio.gather(
        *(ask(url, body, clock, times) for times in all_times), return_exceptions=True
    )
    end = clock()
    good = [
        (sent, times)
        for sent, times in zip(results, all_times)
        if not isinstance(sent, BaseException)
    ]
    ttft = [times[0] - sent for sent, times in good if times]
    itl = [times[i] - times[i - 1] for _, times in good for i in range(1, len(times))]
    return Measurement(
        clients,
        len(results),
        len(results) - len(good),
        *(percentile(ttft, 50), percentile(ttft, 95), percentile(itl, 50), percentile(itl, 95)),
        tokens_per_s=sum(map(len, all_times)) / (end - start or 1),
    )
