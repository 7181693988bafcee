"""Whether the server speaks the protocol: lists, shapes, streams, usage."""

import asyncio
import json
import re

from course.audit.server import DoesNotApply, Failed, counted, parsed, quote, require_answer, shorten, written

WHOLE = {"id": str, "object": str, "created": int, "model": str, "choices": list}
KINDS = {str: "a string", int: "a whole number", list: "a list"}


async def models(server):
    """GET /models lists the model

    Clients let users choose from this list, so a model that is missing from it cannot be chosen. List each model under
    the name that requests use."""
    answer = await server.send("GET", "/models")
    listed = answer.json.get("data") if isinstance(answer.json, dict) else None
    if answer.status != 200 or not isinstance(listed, list):
        raise Failed(f"no list of models: {answer.says()}", answer.sent)
    ids = [each.get("id") for each in listed if isinstance(each, dict)]
    if server.model not in ids:
        raise Failed(f"the list has {shorten(ids)}, not {server.model!r}", answer.sent)
    return f"{counted(len(ids), 'model')} listed"


async def answer_shape(server):
    """a non-streamed answer has the documented shape

    Clients read fields such as `choices[0].message.content` and `finish_reason` without checking; a missing one crashes
    them. Fill them in for every answer."""
    answer = await server.known()
    whole = answer.json
    for name, kind in WHOLE.items():
        if not isinstance(whole.get(name), kind):
            raise Failed(f"`{name}` is {shorten(written(whole, name))}; it should be {KINDS[kind]}", answer.sent)
    if whole["object"] != "chat.completion":
        raise Failed(f"`object` is {whole['object']!r}; it should be 'chat.completion'", answer.sent)
    if not 1e9 < whole["created"] < 1e11:
        raise Failed(f"`created` is {whole['created']}; it should be in seconds since 1970", answer.sent)
    choice = whole["choices"][0]
    if choice.get("index") != 0:
        raise Failed(f"`choices[0].index` is {written(choice, 'index')}; it should be 0", answer.sent)
    role = written(choice.get("message"), "role")
    if role != "'assistant'":
        raise Failed(f"`choices[0].message.role` is {role}; it should be 'assistant'", answer.sent)
    if choice.get("finish_reason") not in ("stop", "length"):
        reason = written(choice, "finish_reason")
        raise Failed(f"`finish_reason` is {reason}; it should be 'stop' or 'length'", answer.sent)


async def stream_shape(server):
    """a stream has the documented shape, up to its [DONE]

    Clients join chunks by their id, and rely on `finish_reason` and [DONE] to tell that nothing is missing: without
    these, an answer that was cut off looks complete. Fill in the fields of every chunk, and end with a
    `finish_reason` and [DONE]."""
    answer = await server.known_stream()
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise Failed(f"the Content-Type is {kind!r}; it should be 'text/event-stream'", answer.sent)
    if not answer.events or answer.events[-1].strip() != "[DONE]":
        last = f"the last event is {shorten(answer.events[-1])}" if answer.events else "there are no events"
        raise Failed(f"{last}; the last should be [DONE]", answer.sent)
    broken = [event for event, chunk in zip(answer.events, answer.chunks) if not isinstance(chunk, dict)]
    if broken:
        raise Failed(f"an event's data is not a JSON object: {shorten(broken[0])}", answer.sent)
    for name in ("id", "created", "model", "object"):
        values = {written(chunk, name) for chunk in answer.chunks}
        if len(values) != 1 or values & {"missing", "null"}:
            values = shorten(", ".join(sorted(values)))
            raise Failed(f"`{name}` should be the same in all chunks, but is {values}", answer.sent)
    if answer.chunks[0]["object"] != "chat.completion.chunk":
        raise Failed(f"`object` is {answer.chunks[0]['object']!r}; it should be 'chat.completion.chunk'", answer.sent)
    roles = [number for number, each in enumerate(answer.choices) if (each.get("delta") or {}).get("role")]
    if roles[:1] != [0] or len(roles) != 1:
        where = f"in chunks {shorten(roles)}, counted from 0" if roles else "in no chunk"
        raise Failed(f"`delta.role` is {where}; it should be in the first chunk only", answer.sent)
    if len(answer.finish_reasons) != 1 or answer.choices[-1].get("finish_reason") is None:
        raise Failed(
            f"the chunks' finish_reasons are {answer.finish_reasons}; there should be one, in the last chunk",
            answer.sent,
        )


async def streaming(server):
    """a stream's text arrives while the model is generating it

    Text that is held back until the end is a stream in name only: people see nothing, and leave. Send each piece as
    soon as it is decoded, and do not let anything buffer it."""
    spread, last_s = [], 0.0
    # a busy computer may miss a stream that is over within a second: that one gets ten tries, not three
    while len(spread) < (3 if last_s > 1.0 else 10):
        others = []

        def ask_others(answer, others=others):
            if answer.times and not others:
                others.append(asyncio.ensure_future(two_others(server)))

        try:
            answer = await server.stream(max_tokens=256 if spread else 64, until=ask_others)
            in_between = bool(others) and others[0].done()
        finally:
            await asyncio.gather(*others, return_exceptions=True)
        require_answer(answer)
        if (answer.tokens() or len(answer.text.split())) < 8:
            raise DoesNotApply(f"the server's answers are too short to tell: {shorten(answer.text)!r}")
        times = answer.times
        first_s, middle_s, last_s = times[0], times[len(times) // 2], times[-1]
        if in_between and not others[0].exception():
            return f"{len(times)} chunks, with two other requests answered between the first and the last"
        spread.append(len(times) > 3 and min(middle_s - first_s, last_s - middle_s) > 0.2 * last_s)
        # for servers where others wait until a stream ends; a busy computer may spread out one burst, not three
        if len(spread) >= 3 and all(spread[-3:]):
            return f"{len(times)} chunks, the first after {100 * first_s / last_s:.0f}% of the time"
    if len(times) <= 3:
        raise Failed(f"the whole text arrives in {counted(len(times), 'chunk')}", answer.sent)
    raise Failed(f"no text for {first_s:.3f} s, then all of it by {last_s:.3f} s: it was held back", answer.sent)


async def two_others(server):
    # by the first answer, text sent all at once has been read: only text generated later follows the second
    for _ in range(2):
        await server.send("GET", "/models")


async def stream_text(server):
    """a stream has the same text as the non-streamed answer

    Pieces that are split or decoded wrongly lose spaces and characters, which short tests do not show. Decode all the
    tokens so far, and send what is new."""
    await server.require_repeatable()
    whole, streamed = await server.known(), await server.known_stream()
    if whole.text != streamed.text:
        at = next((n for n, (a, b) in enumerate(zip(whole.text, streamed.text)) if a != b), None)
        at = min(len(whole.text), len(streamed.text)) if at is None else at
        raise Failed(
            f"from character {at} on, the stream says {quote(streamed.text, at, 54)},"
            f" and the non-streamed answer {quote(whole.text, at, 54)}",
            streamed.sent,
        )


async def usage(server):
    """a non-streamed answer reports how many tokens it used

    Bills and limits are computed from these three numbers. Count the prompt's tokens and the generated ones, and add
    them up."""
    answer = await server.known()
    check_usage(answer.usage, answer.sent)


def check_usage(found, sent):
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    numbers = [(found or {}).get(name) for name in names]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        said = shorten(json.dumps(found)) if found else "missing or null"
        raise Failed(f"`usage` is {said}; it should have {', '.join(names)}, each above 0", sent)
    if numbers[0] + numbers[1] != numbers[2]:
        said = ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
        raise Failed(f"{said}: the total is not the sum", sent)


async def stream_usage(server):
    """a stream reports usage if asked to, and only then

    A client that did not ask for it may fail on a chunk without choices; a client that did has no other way to get the
    numbers. Send it only if `stream_options.include_usage` is true."""
    unasked = await server.known_stream()
    if unasked.usage is not None:
        raise Failed(f"`usage` was sent without being requested: {shorten(json.dumps(unasked.usage))}", unasked.sent)
    asked = require_answer(await server.stream(stream_options={"include_usage": True}))
    if asked.usage is None:
        raise Failed("no `usage`, although `stream_options` asked for it", asked.sent)
    check_usage(asked.usage, asked.sent)
    known = await server.known()
    if known.usage and known.text == asked.text and known.tokens() != asked.tokens():
        raise Failed(
            f"the same text counts as {asked.tokens()} completion_tokens in a stream, but {known.tokens()} otherwise",
            asked.sent,
        )


async def official_client(server):
    """OpenAI's own client reads a stream to its end

    It is stricter than most hand-written clients: a keep-alive sent as an event, for example, makes it raise an error.
    Send keep-alives as comments, and nothing but JSON and [DONE] as data."""
    import openai

    server.count()
    client = openai.AsyncOpenAI(
        base_url=server.url, api_key=server.key or "none", max_retries=0, timeout=30, http_client=server.http
    )
    body, sent = server.body(stream=True), "client.chat.completions.create(stream=True)"
    try:
        chunks = [chunk async for chunk in await client.chat.completions.create(**body)]
    except Exception as error:  # whatever it raises is what its users would see
        raise Failed(
            f"the client raises {type(error).__name__}: {shorten(error)}{await odd_event(server)}", sent
        ) from None
    if any(chunk.choices is None for chunk in chunks):
        raise Failed(f"the client reads an event as a chunk without `choices`{await odd_event(server)}", sent)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    if not text and (await server.known_stream()).text:
        raise Failed("the client finds no text in the stream", sent)


async def odd_event(server):
    """Say what in a stream a client may not expect: a named event, or data that is not JSON; "" if there is nothing."""
    try:
        body = (await server.stream()).body
    except Failed:
        return ""
    for event in re.split(r"\r?\n\r?\n", body):
        for line in event.splitlines():
            name, _, value = line.partition(":")
            known = name != "data" or value.strip() == "[DONE]" or isinstance(parsed(value), dict)
            if name == "event" or not known:
                return f"; the stream contains {shorten(event, 80)!r}"
    return ""
