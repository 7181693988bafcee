"""A chat server by script for `course audit`: right, or wrong in one point.

    with serving("stop-strings") as url:  # wrong in what the check of that name looks at
        ...

Its model says words that depend on the question alone, a token each millisecond, for any number at once.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import re
import socket
import threading
import time

import uvicorn
from pydantic import ValidationError

from course.answers import load

MODEL = "scripted"
WINDOW = 8192
WORDS = "sea light keeper stone gull rope wind night lamp door stair salt boat bell wave rock fog star".split()
LETTERS = "灯台守海かなカナ风浪👍🏽🇨🇭é"
MOST = 120
"""Tokens of an answer that nothing cuts."""
BUSY = 20
"""More than that at once are too many, with the switch `overload`."""


class Model:
    """What the answers share."""

    def __init__(self):
        self.works = asyncio.Lock()
        self.question, self.running, self.asked, self.held_until = "", 0, 0, 0.0


def words(question, seed):
    """The tokens of an answer."""
    draw = random.Random(seed)
    own = str(int(hashlib.sha256(question.encode()).hexdigest(), 16))[:6]
    if not question.isascii():
        return [own, *(draw.choice(LETTERS) for _ in range(MOST - 1))]
    return [own, *(f" {draw.choice(WORDS)}" for _ in range(MOST - 1))]


class App:
    def __init__(self, wrong=""):
        self.wrong = wrong
        self.model = None
        self.request, self.error = load("3.7", "ChatRequest", True), load("3.7", "openai_error", True)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.model = self.model or Model()
        method, path = scope["method"], scope["path"]
        if path == "/v1/models" and method in ("GET", "HEAD"):
            model = "another" if self.wrong == "models" else MODEL
            data = [] if method == "HEAD" else [{"id": model, "object": "model", "created": 0, "owned_by": "you"}]
            await self.reply(send, 200, {"object": "list", "data": data}, empty=method == "HEAD")
        elif path == "/v1/chat/completions" and method == "POST":
            await self.chat(await body_of(receive), receive, send)
        elif path == "/v1/chat/completions":
            await self.refuse(send, 405, "Only POST.")
        elif self.wrong == "other-requests":
            await self.reply(send, 200, {"ok": True})
        else:
            await self.refuse(send, 404, "There is no such path.")

    async def chat(self, body, receive, send):
        try:
            asked = self.request.model_validate_json(body.decode("utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            if self.wrong == "wrong-bodies" and b'"temperature": -1' in body:
                return await self.refuse(send, 500, "Internal Server Error")
            words = f"{type(error).__name__} in /srv/app/main.py" if self.wrong == "errors-tell-nothing" else "not so"
            return await self.refuse(send, 400, f"The body is wrong: {words}")
        if asked.model != MODEL and self.wrong != "unknown-model":
            return await self.refuse(send, 404, "There is no such model.", code="model_not_found")
        question = asked.messages[-1].as_dict()["content"]
        tokens = 20 + len(re.findall(r"\w+|\W", question))
        if self.wrong == "typed-control-tokens":
            tokens = 20 + len(re.findall(r"<\|\w+\|>|</s>|\w+|\W", question))
        if tokens > WINDOW:
            if self.wrong != "too-long":
                return await self.refuse(send, 400, f"The prompt has {tokens} tokens, and the window holds {WINDOW}.")
            tokens = WINDOW
        if self.wrong == "overload" and self.model.running > BUSY:
            return await self.refuse(send, 503, "Too many.")
        self.model.running += 1
        leaving = asyncio.ensure_future(left(receive))
        try:
            await Answer(self, asked, question, tokens, leaving).give(send)
        finally:
            leaving.cancel()
            self.model.running -= 1

    async def refuse(self, send, status, words, code=None):
        kind = "invalid_request_error" if status < 500 else "server_error"
        response = self.error(status, words, type=kind, code=code)
        await self.reply(send, status, json.loads(response.body))

    async def reply(self, send, status, data, empty=False):
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if empty else json.dumps(data).encode()})


class Answer:
    """One answer of the model."""

    def __init__(self, app, asked, question, prompt_tokens, leaving):
        self.app, self.wrong, self.model = app, app.wrong, app.model
        self.asked, self.question, self.prompt_tokens, self.leaving = asked, question, prompt_tokens, leaving
        self.options = asked.options
        self.made, self.reason = 0, None
        self.base = {"id": f"chatcmpl-{random.random()}", "created": int(time.time()), "model": asked.model}

    async def give(self, send):
        if self.wrong == "long-prompts" and self.prompt_tokens > 3000:
            time.sleep(2)
        self.model.question = self.question
        if self.asked.stream:
            await self.stream(send)
            return
        text = "".join([text async for text in self.texts()])
        if self.leaving.done():
            return
        message = {"role": "assistant", "content": text}
        if self.wrong == "answer-shape":
            del message["role"]
        choice = {"index": 0, "message": message, "finish_reason": self.reason}
        usage = self.usage(1 if self.wrong == "usage" else 0)
        whole = {**self.base, "object": "chat.completion", "choices": [choice], "usage": usage}
        await self.app.reply(send, 200, whole)

    def usage(self, more=0):
        total = self.prompt_tokens + self.made + more
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.made, "total_tokens": total}

    async def stream(self, send):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        kept = []

        async def event(data):
            body = f"data: {data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)}\n\n".encode()
            if self.wrong == "streaming":
                return kept.append(body)
            if self.wrong != "slow-readers":
                return await write(send, body)
            async with self.model.works:
                # more than the buffers of a connection hold
                pad = b": " + b"." * 100_000 + b"\n\n" if self.options["max_tokens"] == 500 and self.made < 3 else b""
                await write(send, pad + body)

        async def chunk(delta, reason=None):
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            await event({**self.base, "object": "chat.completion.chunk", "choices": choices})

        if self.wrong == "official-client":
            await write(send, b"event: ping\ndata: ping\n\n")
        else:
            await write(send, b": keep-alive\n\n")
        await chunk({"role": "assistant", "content": ""})
        async for text in self.texts():
            if self.wrong == "stream-text":
                text = re.sub(r"\d", "#", text)
            if self.wrong == "unicode" and not text.isascii():
                text = "\ufffd" * len(text.encode())
            await chunk({"content": text})
        await chunk({}, self.reason)
        if self.asked.include_usage or self.wrong == "stream-usage":
            await event({**self.base, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()})
        if self.wrong != "stream-shape":
            await event("[DONE]")
        for body in kept:
            await write(send, body)
        await send({"type": "http.response.body"})

    async def texts(self):
        """The answer's text, token by token, to where it is cut; when its reader has left it ends."""
        if self.wrong in ("clients-at-once", "overload") and self.asked.stream:
            await asyncio.sleep(0.15)  # so that they meet
        wait, limit = "", self.options["max_tokens"] or MOST
        stops = self.options["stop"]
        for text in self.tokens():
            async with self.model.works:
                pass
            # what somebody is going to leave takes long, so that on a busy computer, too, it is left before its end
            await asyncio.sleep(0.02 if self.goes_on and limit == 500 else 0.001)
            if self.leaving.done():
                await self.go_on()
                return
            self.made += 1
            wait += text
            found = [wait.index(stop) + len(stop) * (self.wrong == "stop-strings") for stop in stops if stop in wait]
            if found:
                self.reason = "stop"
                yield wait[: min(found)]
                return
            # what may become a stop string waits
            held = max((n for stop in stops for n in range(len(stop)) if wait.endswith(stop[:n])), default=0)
            yield wait[: len(wait) - held]
            wait = wait[len(wait) - held :]
            if self.made == limit:
                break
        else:
            limit = None
        self.reason = "length" if limit and self.wrong != "length" else "stop"
        yield wait + "<|im_end|>" * (self.wrong == "no-control-tokens" and not limit)

    def tokens(self):
        question, seed = self.question, self.options["seed"]
        if self.wrong == "clients-at-once":
            question = self.model.question
        self.model.asked += 1
        if self.options["temperature"] == 0:
            seed = question
            if self.wrong == "repeatable":
                seed += f"{self.model.asked}"
        elif seed is None or self.wrong == "seeds":
            seed = self.model.asked
        found = words(question, seed)
        return [f"{question}\n", *found] if self.wrong == "prompt-not-echoed" else found

    @property
    def goes_on(self):
        return self.wrong == ("dropped-streams" if self.asked.stream else "dropped-answers")

    async def go_on(self):
        """What a server does that does not stop for who has left: nobody else's turn comes."""
        if self.goes_on:
            await asyncio.sleep(0.1)  # until those who leave together have left
            # once for all of them
            if self.leaving.result() > self.model.held_until:
                self.model.held_until = float("inf")
                async with self.model.works:
                    await asyncio.sleep(4)
                self.model.held_until = time.monotonic()


async def write(send, body):
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def body_of(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def left(receive):
    """Waits until the client has left; when that was."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return time.monotonic()


@contextlib.contextmanager
def serving(wrong=""):
    """The base URL of such a server in a thread."""
    # a log level or config would be that of every later server in this process
    config = uvicorn.Config(App(wrong), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    # its connections hold as little, so that one that nobody reads is full at once
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)
    listening.close()
