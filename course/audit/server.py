"""The server that is being examined, as the checks see it: queried with httpx, within a budget of requests."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from course.asking import is_here

MOST_REQUESTS = 300
LIMIT_S = 30
"""How long a single answer may take."""
QUESTION = "Tell me a long story about a lighthouse keeper and the sea, please."
PATH = "/chat/completions"
NO_END = "the answer did not end"


class Failed(Exception):
    """The server does what no server should. `sent` and `got` are one line each."""

    def __init__(self, got, sent=None):
        super().__init__(got)
        self.got, self.sent = got, sent


class DoesNotApply(Exception):
    """The check cannot decide about this server. The message says why."""


@dataclass
class Answer:
    """The response to one request."""

    sent: str
    status: int = 0
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    body: str = ""
    """All of it, even for a stream."""
    chunks: list = field(default_factory=list)
    """The JSON of a stream's events without a name, except [DONE]."""
    events: list = field(default_factory=list)
    """The data of all these events, as text."""
    times: list = field(default_factory=list)
    """Seconds from the request to each chunk with text."""
    seconds: float = 0.0
    streamed: bool = False

    @property
    def json(self):
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def choices(self):
        """The only choice of an answer, or of each chunk that has one, as a list of dicts."""
        found = self.chunks if self.streamed else [self.json]
        choices = [each.get("choices") for each in found if isinstance(each, dict)]
        return [each[0] for each in choices if isinstance(each, list) and each and isinstance(each[0], dict)]

    @property
    def text(self):
        return "".join(text_of(each.get("delta" if self.streamed else "message")) for each in self.choices)

    @property
    def finish_reasons(self):
        return [each["finish_reason"] for each in self.choices if each.get("finish_reason") is not None]

    @property
    def usage(self):
        """The last usage that was sent, a dict; None if there was none."""
        found = [each.get("usage") for each in [*self.chunks, self.json] if isinstance(each, dict)]
        return next((each for each in reversed(found) if isinstance(each, dict)), None)

    def tokens(self, name="completion_tokens"):
        """A number from its usage; None if it has none."""
        number = (self.usage or {}).get(name)
        return number if isinstance(number, int) else None

    @property
    def error(self):
        """The `error` in the body, if it is an object with a message; otherwise None."""
        error = self.json.get("error") if isinstance(self.json, dict) else None
        return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None

    def says(self):
        """The status and the body, in one line."""
        return f"{self.status} {shorten(self.body)}".strip()


def text_of(part):
    """The text of a message or a delta, including a model's reasoning."""
    if not isinstance(part, dict):
        return ""
    texts = [part.get(name) for name in ("reasoning_content", "content")]
    return "".join(text for text in texts if isinstance(text, str))


def shorten(text, most=160):
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def quote(text, at=0, most=160):
    """The text from position `at` on, shortened, in quotes; "..." stands for what is left out."""
    return repr(shorten(("... " if at > 0 else "") + text[max(0, at) :], most))


def written(data, name):
    """A field of a JSON object, as a message shows it: "missing", "null" or its value."""
    if not isinstance(data, dict) or name not in data:
        return "missing"
    return repr(data[name]) if isinstance(data[name], str) else json.dumps(data[name], ensure_ascii=False)


def counted(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def brief(content):
    """A body in one line, with its long texts cut, so that the whole request can be seen."""
    text = content if isinstance(content, str) else content.decode("utf-8", "backslashreplace")
    try:
        return shorten(json.dumps(with_short_texts(json.loads(text)), ensure_ascii=False), 260)
    except ValueError:
        return shorten(text)


def with_short_texts(data):
    if isinstance(data, dict):
        return {name: with_short_texts(value) for name, value in data.items()}
    if isinstance(data, list):
        return [with_short_texts(value) for value in data]
    return shorten(data, 48) if isinstance(data, str) and len(data) > 48 else data


class Server:
    """The server at a base URL such as http://127.0.0.1:8000/v1. Use it as an async context manager."""

    def __init__(self, url, *, model=None, key=None, clients=16):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.host, self.port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        self.model, self.key, self.clients = model, key, clients
        self.requests, self.last_sent = 0, ""
        self._kept = {}

    async def __aenter__(self):
        self.http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            # one connection per request: many servers silently close theirs after a 500, which is not examined here
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            timeout=LIMIT_S,
            trust_env=not self.is_here,
        )
        return self

    async def __aexit__(self, *_):
        await self.http.aclose()

    @property
    def is_here(self):
        """Whether its address belongs to this computer."""
        return is_here(self.url)

    def count(self, more=1):
        """Take this many requests from the budget.

        Raises:
            DoesNotApply: they are used up.
        """
        if self.requests + more > MOST_REQUESTS:
            raise DoesNotApply(f"the audit's limit of {MOST_REQUESTS} requests has been reached")
        self.requests += more

    # asking

    def body(self, question=QUESTION, **options):
        """The JSON of a request: greedy and short, unless the options say otherwise. None leaves out a field."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 32, **options}
        return {name: value for name, value in body.items() if value is not None}

    async def send(self, method="POST", path=PATH, *, content=None, headers=(), limit_s=LIMIT_S, base=None):
        """Send any request and return the Answer. `content` is text or bytes, sent as JSON."""
        sent = f"{method} {path} {brief(content or '')}".strip()
        async with self.opened(method, path, sent, content, headers, limit_s, base) as (answer, response, _):
            answer.body = (await response.aread()).decode("utf-8", "replace")
        return answer

    async def ask(self, question=QUESTION, *, limit_s=LIMIT_S, **options):
        """Request a non-streamed answer. A response other than a 200 is returned as it is."""
        return await self.send(content=json.dumps(self.body(question, **options)), limit_s=limit_s)

    async def stream(self, question=QUESTION, *, limit_s=LIMIT_S, until=None, **options):
        """Request a streamed answer and read it to its end, or leave as soon as `until(answer)` is true."""
        content = json.dumps(self.body(question, stream=True, **options))
        sent = f"POST {PATH} {brief(content)}"
        async with self.opened("POST", PATH, sent, content, (), limit_s) as (answer, response, began):
            if response.status_code != 200:
                answer.body = (await response.aread()).decode("utf-8", "replace")
                return answer
            answer.streamed = True
            async for name, data in events(response.aiter_bytes(), answer):
                if name not in ("", "message"):
                    continue
                answer.events.append(data)
                if data.strip() == "[DONE]":
                    continue
                chunk = parsed(data)
                answer.chunks.append(chunk)
                if isinstance(chunk, dict) and choice_text(chunk):
                    answer.times.append(time.perf_counter() - began)
                if until and until(answer):
                    break
        return answer

    @asynccontextmanager
    async def opened(self, method, path, sent, content, headers, limit_s, base=None):
        self.count()
        headers = {"Content-Type": "application/json"} | dict(headers) if content is not None else dict(headers)
        answer, began, self.last_sent = Answer(sent), time.perf_counter(), sent
        try:
            async with asyncio.timeout(limit_s):
                url = (self.url if base is None else base) + path
                async with self.http.stream(method, url, content=content, headers=headers) as response:
                    answer.status, answer.headers = response.status_code, response.headers
                    yield answer, response, began
        except (TimeoutError, httpx.TimeoutException):
            raise Failed(f"{NO_END} within {limit_s:g} s", sent) from None
        except httpx.HTTPError as error:
            raise Failed(f"the connection broke: {type(error).__name__}: {error}", sent) from None
        finally:
            answer.seconds = time.perf_counter() - began

    # what several checks need, requested only once

    async def once(self, name, ask):
        """What `ask()` returned the first time it was called under this name."""
        if name not in self._kept:
            self._kept[name] = await ask()
        return self._kept[name]

    async def known(self):
        """The non-streamed answer that checks compare with.

        Raises:
            Failed: it is not an answer with text.
        """
        return require_answer(await self.once("known", self.ask))

    async def known_stream(self):
        """The same answer, streamed."""
        return require_answer(await self.once("known stream", self.stream))

    async def require_repeatable(self):
        """Raises:
        DoesNotApply: at temperature 0, the server gives a different answer when asked again.
        """
        known = await self.known()
        again = await self.once("again", self.ask)
        if known.text != again.text:
            raise DoesNotApply("the server does not repeat its answers: see `repeatable`")

    async def idle_s(self):
        """Seconds to the first text on the idle server: the median of three tries, measured only once."""
        return await self.once("idle", self._idle_s)

    async def _idle_s(self):
        return sorted([await self.first_text_s() for _ in range(3)])[1]

    async def first_text_s(self, limit_s=LIMIT_S):
        answer = await self.stream("Hello!", max_tokens=8, limit_s=limit_s)
        require_answer(answer)
        return answer.times[0] if answer.times else answer.seconds


def require_answer(answer):
    """The answer, if it is a 200 with text.

    Raises:
        DoesNotApply: the server refuses because there were too many requests.
        Failed: the response is anything else.
    """
    if answer.status == 429:
        raise DoesNotApply("the server's rate limit has been reached (429)")
    if answer.status != 200 or not answer.text:
        raise Failed(f"no answer to an ordinary question: {answer.says()}", answer.sent)
    return answer


def choice_text(chunk):
    choices = chunk.get("choices")
    return text_of(choices[0].get("delta")) if isinstance(choices, list) and choices else ""


def parsed(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


async def events(pieces, answer):
    """Yield (name, data) of each server-sent event in these bytes, and add the bytes to `answer.body`."""
    line, name, data = b"", "", []
    async for piece in pieces:
        answer.body += piece.decode("utf-8", "replace")
        *lines, line = (line + piece).split(b"\n")
        for each in lines:
            text = each.rstrip(b"\r").decode("utf-8", "replace")
            if not text:
                if data:
                    yield name, "\n".join(data)
                name, data = "", []
            elif text.startswith("data:"):
                data.append(text[5:].removeprefix(" "))
            elif text.startswith("event:"):
                name = text[6:].strip()
