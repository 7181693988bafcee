"""Stage 3's endpoint on an engine with few slots and without admission, and clients that may ask for too much.

server = overload.serve(slots=4)
asked = await overload.flood(server.url, per_s=60, seconds=4)
plots.flood({"no bound": asked})
server.stop()
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

from course.answers import load
from course.demos.servers import in_a_thread
from course.lessons.engine_process import Engine
from course.lessons.stage import model_folder
from course.lessons.stage4 import PATH, load_engine

QUESTION = [{"role": "user", "content": "Tell me a long story"}]
TOKENS = 16
"""The maximum number of tokens in an answer."""


class Served:
    """A running server; `entrance` and `chat_model` may be replaced while it runs.

    Attributes:
        url: its address.
        app: the reference's endpoint from 3.7, around `chat_model`. It accepts every request.
        entrance: the app that gets the requests; initially `app` itself.
        chat_model: the object whose `chat` generates the answers; initially `engine`.
        engine: the engine, which answers as many requests at once as it has slots, while the others wait in it.
    """

    def __init__(self, slots):
        folder = model_folder(None)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encode_chat = load("1.5", "encode_chat", solution=True)
        self.engine = Engine(
            partial(load_engine, True, folder, slots, False), lambda messages: encode_chat(tokenizer, messages)
        )
        self.chat_model = self.engine
        self.app = self.entrance = load("3.7", "create_app", solution=True)(lambda: self)
        inner = self.app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(app):
            async with self.engine, inner(app):
                yield

        self.app.router.lifespan_context = lifespan
        self._server, self.url = in_a_thread(self)

    def chat(self, messages, **options):
        return self.chat_model.chat(messages, **options)

    async def __call__(self, scope, receive, send):
        await (self.app if scope["type"] == "lifespan" else self.entrance)(scope, receive, send)

    def stop(self):
        self._server.should_exit = True


def serve(slots) -> Served:
    """Start a server with this many slots. `stop()` ends it.

    Raises:
        RuntimeError: the server did not start.
    """
    return Served(slots)


@dataclass
class Asked:
    """What one client saw. Times are in seconds since the first client sent its request."""

    at_s: float
    status: int = 0
    first_s: float | None = None
    """When the first text arrived; None if none did."""
    ended_s: float | None = None
    tokens: int = 0

    @property
    def ttft_s(self):
        """Seconds from the request to the first text; None if there was no text."""
        return None if self.first_s is None else self.first_s - self.at_s


async def ask(url, began, max_tokens=TOKENS, leave_after=None) -> Asked:
    """Request a streamed answer and read it from a plain socket: a cheap client leaves more CPU to the server.

    Args:
        began: the time that counts as 0, as read from `time.perf_counter`.
        leave_after: the client leaves after this many pieces of text; None means that it stays.
    """
    place = urlsplit(url)
    request = {"model": "tiny-qwen", "messages": QUESTION, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body = json.dumps(request).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    asked = Asked(time.perf_counter() - began)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        asked.status = int((await reader.readline()).split()[1])
        async for line in reader:
            if b'"content":"' in line.replace(b": ", b":") and b'"content":""' not in line.replace(b": ", b":"):
                asked.tokens += 1
                asked.first_s = asked.first_s or time.perf_counter() - began
                if asked.tokens == leave_after:
                    break
        asked.ended_s = time.perf_counter() - began
    except (OSError, IndexError):
        pass  # the server has closed the connection
    finally:
        writer.close()
    return asked


async def flood(url, *, per_s, seconds, max_tokens=TOKENS) -> list[Asked]:
    """Send `per_s` requests a second, no matter how earlier ones fare, as unrelated users do. Waits for all of them."""
    began, asking = time.perf_counter(), []
    for number in range(round(per_s * seconds)):
        await asyncio.sleep(began + number / per_s - time.perf_counter())
        asking.append(asyncio.create_task(ask(url, began, max_tokens)))
    return await asyncio.gather(*asking)


async def capacity(url, *, clients, seconds=1.5, max_tokens=TOKENS) -> float:
    """Answers per second if each client sends its next request as soon as it has its answer."""
    began = time.perf_counter()

    async def client():
        answers = 0
        while time.perf_counter() - began < seconds:
            answers += (await ask(url, began, max_tokens)).tokens > 0
        return answers

    answers = await asyncio.gather(*(client() for _ in range(clients)))
    return sum(answers) / (time.perf_counter() - began)


@dataclass
class Load:
    """What this many concurrent clients saw. For `plots.loads`."""

    clients: int
    ttft_p95_s: float
    tokens_per_s: float


async def at_once(url, *, clients, rounds=2, max_tokens=64) -> Load:
    """Let concurrent clients send `rounds` requests each. The rate is that of the whole run."""
    began = time.perf_counter()

    async def client():
        return [await ask(url, began, max_tokens) for _ in range(rounds)]

    asked = [each for answers in await asyncio.gather(*(client() for _ in range(clients))) for each in answers]
    waits = sorted(each.ttft_s for each in asked if each.ttft_s is not None)
    p95 = waits[min(len(waits) - 1, round(0.95 * len(waits)))] if waits else float("nan")
    return Load(clients, p95, sum(each.tokens for each in asked) / (time.perf_counter() - began))


async def watched(url, work):
    """Await `work`, reading /metrics five times a second in the meantime.

    Returns:
        (what `work` returned, the times in seconds, {name of a metric: a list with its value at each time}). For
        counters and sums, each value is the growth since the previous time.
    """
    began, at_s, read = time.perf_counter(), [], []
    work = asyncio.ensure_future(work)
    async with httpx.AsyncClient(timeout=10) as client:
        while not work.done():
            text = (await client.get(f"{url}/metrics")).text
            at_s.append(time.perf_counter() - began)
            samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
            read.append({sample.name: sample.value for sample in samples if not sample.labels})
            await asyncio.wait([work], timeout=0.2)
    grows = ("_total", "_sum", "_count")
    figures = {}
    for name in read[-1]:
        values = [each.get(name, 0.0) for each in read]
        if name.endswith(grows):
            values = [0.0, *(after - before for before, after in zip(values, values[1:]))]
        figures[name] = values
    return await work, at_s, figures
