"""Whether the server refuses wrong requests, reports them as the client's mistake, and does not reveal too much."""

import json
import re

from course.audit.server import PATH, DoesNotApply, Failed, quote

HI = [{"role": "user", "content": "Hi"}]
BODIES = {
    "an empty body": b"",
    "a body that is not JSON": b"{'model': 'x'}",
    "half a body": b'{"model": "MODEL", "messages": [',
    "a JSON list": b"[]",
    "a JSON string": b'"hi"',
    "a body that is null": b"null",
    "bytes that are not UTF-8": b'{"model": "MODEL", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a body without a model": {"model": None},
    "a body without messages": {"messages": None},
    "an empty list of messages": {"messages": []},
    "messages as a string": {"messages": "Hi"},
    "a message that is a string": {"messages": ["Hi"]},
    "a message without a role": {"messages": [{"content": "Hi"}]},
    "an unknown role": {"messages": [{"role": "wizard", "content": "Hi"}]},
    "content that is a number": {"messages": [{"role": "user", "content": 5}]},
    "a content part of an unknown type": {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
    "a temperature below 0": {"temperature": -1},
    "a temperature that is a word": {"temperature": "hot"},
    "a temperature of NaN": b'{"model": "MODEL", "messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
    "a top_p above 1": {"top_p": 1.5},
    "a max_tokens below 0": {"max_tokens": -1},
    "a max_tokens that is a word": {"max_tokens": "many"},
    "a stream that is a list": {"stream": []},
    "a stop that is a number": {"stop": 5},
}
"""What is wrong, and the body: bytes, or changes to the fields of an ordinary request. None leaves a field out."""
TELLING = {
    "a traceback": re.compile(r"Traceback \(most recent|File \"[^\"]+\", line \d+"),
    "a path": re.compile(
        r"(?:/(?:home|usr|opt|root|app|srv|work|tmp|var|workspace)/[\w./-]+|[A-Z]:\\[\w\\.-]+|\w+\.py\b)"
    ),
    "an exception name": re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b"),
}


async def send_wrong(server, what):
    wrong = BODIES[what]
    if isinstance(wrong, dict):
        content = json.dumps({name: value for name, value in (server.body("Hi") | wrong).items() if value is not None})
    else:
        content = wrong.replace(b"MODEL", json.dumps(server.model).strip('"').encode())
    return await server.send(content=content)


async def wrong_bodies(server):
    """each of 24 invalid bodies gets a 4xx with an error object

    A 5xx says that the server is broken: clients retry and someone gets paged, all because of a typo. For a 4xx,
    clients show `error.message`. Validate the body first, and use that message to say what is wrong with it."""
    for what in BODIES:
        answer = await send_wrong(server, what)
        if answer.status == 429:
            raise DoesNotApply("the server's rate limit has been reached (429)")
        if not 400 <= answer.status < 500:
            raise Failed(f"{what} should get a 4xx, but got {answer.says()}", answer.sent)
        if not (answer.error or {}).get("message"):
            raise Failed(f"{what} got an error without `error.message`: {answer.says()}", answer.sent)


async def unknown_model(server):
    """an unknown model gets a 404

    If a different model answers, no one notices the mistake; any status but 404 hides what has to be fixed.
    Compare `model` with the names that you serve."""
    answer = await server.ask("Hi", model="no-such-model-anywhere", max_tokens=1)
    if answer.status != 404:
        raise Failed(f"not a 404: {answer.says()}", answer.sent)
    if not answer.error:
        raise Failed(f"an error without `error.message`: {answer.says()}", answer.sent)


async def too_long(server):
    """a prompt longer than the context window gets a 400

    If the prompt is silently truncated, the question or its beginning is lost, and the model answers something else. If
    it is let through, it may take the memory that everyone's answers need. Count its tokens before generating, and
    refuse it."""
    for words in (20_000, 150_000):
        answer = await server.ask("word " * words, max_tokens=1, limit_s=20)
        sent = f"a prompt of {words:,} words"
        if answer.status in (400, 413):
            if not answer.error:
                raise Failed(f"an error without `error.message`: {answer.says()}", sent)
            return f"{words:,} words get a {answer.status}"
        if answer.status != 200:
            raise Failed(f"neither an answer nor a 400: {answer.says()}", sent)
        read = answer.tokens("prompt_tokens")
        if read is not None and read < words / 2:
            raise Failed(f"an answer with {read:,} prompt_tokens: the prompt was silently truncated", sent)
    raise DoesNotApply(f"the context window holds more than {words:,} words")


async def errors_tell_nothing(server):
    """errors reveal no traceback, path or exception name

    Attackers start from what errors reveal, and users cannot do anything with it. Write it to the server's log, and
    tell clients only what is wrong with their request."""
    answers = [await send_wrong(server, what) for what in list(BODIES)[1:12:2]]
    answers.append(await server.ask("Hi", model="no-such-model-anywhere", max_tokens=1))
    answers.append(await server.send("GET", "/no/such/path"))
    for answer in answers:
        if answer.status < 400:
            continue
        text = answer.body
        if answer.error:  # `type` and `code` may be any words
            text = json.dumps({name: value for name, value in answer.error.items() if name not in ("type", "code")})
        text = text.replace(server.model, "MODEL")  # the name may be a path
        for what, pattern in TELLING.items():
            if found := pattern.search(text):
                around = quote(text, found.start() - 40)
                raise Failed(f"the error reveals {what}, {found[0]!r}: {around}", answer.sent)


async def other_requests(server):
    """a preflight, HEAD and unknown paths get a truthful status

    Browsers send OPTIONS first, and health checks send HEAD; a 200 for a path that does not exist hides every typo.
    Allow cross-origin requests or refuse them, route HEAD like GET, and give unknown paths a 404."""
    origin = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    preflight = await server.send("OPTIONS", PATH, headers=origin)
    if preflight.status >= 500:
        raise Failed(f"the preflight fails: {preflight.says()}", preflight.sent)
    if preflight.status < 300 and "access-control-allow-origin" not in preflight.headers and origin:
        raise Failed(
            f"{preflight.status} without Access-Control-Allow-Origin: browsers will not send the request",
            preflight.sent,
        )
    head = await server.send("HEAD", "/models")
    if head.status not in (200, 204, 401, 403, 404, 405) or head.body:
        raise Failed(f"HEAD should get what GET gets, without the body, but got {head.says()}", head.sent)
    for method, path in (("GET", "/no/such/path"), ("POST", "/chat/completion"), ("GET", PATH)):
        answer = await server.send(method, path, content="{}" if method == "POST" else None)
        if not 400 <= answer.status < 500:
            raise Failed(f"there is nothing at this path: it should get a 4xx, but got {answer.says()}", answer.sent)
