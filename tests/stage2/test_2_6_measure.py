"""2.6: `measure` against servers of scripted behaviour, with a clock that the test moves.

The clock stands still unless the test moves it, so that every time is exact. Percentiles are asked
for only where all usual definitions of one agree.
"""

import asyncio
import dataclasses
import inspect
import json
import math
import random
import ssl
import types
from numbers import Real

from course.grading.lockstep import CLOSE, START, Lockstep, read_clock
from course.grading.mistakes import Mistake, Raised, fail, require
from course.grading.scripted import RESET, NobodyListens, head, response

PROMPT = "Say 你好 and \"hi\".\n"
MOST = 37
FIELDS = [
    *("clients", "requests", "errors"),
    *("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s", "tokens_per_s"),
]
MANY = 128
"""More than the 100 connections that httpx opens by default."""


# in the room


async def measuring(answer, room, url, clients, clock_file=None, times=1):
    # the tests share a room: what an answer keeps in its module is to be found by one of them only
    answer.__spec__.loader.exec_module(answer)
    # http only: each client that is made would load all certificates, for 20 ms
    ssl.SSLContext.load_verify_locations = lambda *args, **kwargs: None
    arguments = {"clients": clients, "prompt": PROMPT, "max_new_tokens": MOST}
    if clock_file:
        arguments["clock"] = read_clock(clock_file)
    for _ in range(times):
        awaited = answer.measure(url, **arguments)
        if not inspect.isawaitable(awaited):
            return {"not_awaitable": type(awaited).__name__}
        result = await awaited
    named = result if isinstance(result, dict) else {n: getattr(result, n, None) for n in FIELDS}
    values = {name: _number(room, named.get(name)) for name in FIELDS}
    is_dataclass = dataclasses.is_dataclass(result) and not isinstance(result, type)
    return {
        "type": type(result).__name__,
        "fields": [field.name for field in dataclasses.fields(result)] if is_dataclass else None,
        "values": values,
    }


async def measuring_by_its_own_clock(answer, room, url, clients, clock_file):
    return await measuring(answer, room, url, clients)


def _number(room, value):
    if isinstance(value, Real) and not isinstance(value, int):
        # numpy's are numbers too; JSON has no NaN
        return float(value) if math.isfinite(value) else str(float(value))
    return room.plain(value)


# outside


def token(text, end="\n"):
    data = json.dumps({"token": text}, ensure_ascii=False)
    return f"data: {data}{end}{end}".encode()


def tokens(count):
    return b"".join(token(f" word{number}") for number in range(count))


def done(pieces):
    return f'event: done\ndata: {{"pieces": {pieces}}}\n\n'.encode()


def chunk(*parts):
    data = b"".join(parts)
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = head(200, "text/event-stream", transfer_encoding="chunked")
END = chunk(b"")
LATE = 100_000.0
"""Seconds: no mean and no other unit makes a wait of 1 s out of it, or the other way round."""
LATE_TOKENS = {0.0: STREAM, LATE: chunk(token("a")), 2 * LATE: chunk(token("b"))}


def whole(at=1.0, count=2, until=2.0):
    """A script: headers at once, a first token at `at`, the other tokens and the end at `until`."""
    return {
        0.0: STREAM,
        at: chunk(token("first")),
        until: chunk(tokens(count - 1)) + chunk(done(count)) + END,
    }


def measured(room, *scripts, scene=measuring, **arguments):
    """What measure returns if its requests are answered so: .values, and .seconds by the clock."""
    clients = arguments.setdefault("clients", len(scripts))
    with Lockstep(room, scene, **arguments) as lockstep:
        lockstep.perform(*scripts)
        # requests too many are another test's to judge
        for _ in range(20):
            if not lockstep.perform(scripts[-1], patience_s=0.0):
                break
        result = _result(lockstep)
    seconds = lockstep.now - START
    return types.SimpleNamespace(
        **result, seconds=seconds, sent=f"measure(..., clients={clients})"
    )


def _result(lockstep):
    result = lockstep.result()
    if "not_awaitable" in result:
        fail(
            "measure has to be a coroutine function: async def measure(...)",
            expected="await measure(...) gives a Measurement",
            got=f"measure(...) gives a {result['not_awaitable']}",
        )
    return result


def compare(seen, field, expected, mistake, known=()):
    """Requires the value; `known` are (wrong value, the mistake it comes from)."""
    got = seen.values[field]
    if _is(got, expected):
        return
    for value, known_mistake in known:
        if _is(got, value):
            mistake = known_mistake
            break
    fail(mistake, sent=seen.sent, expected=f"{field}={expected}", got=f"{field}={got}")


def _is(got, expected):
    return type(got) in (int, float) and math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6)


def test_each_client_posts_the_prompt(shared_room):
    with Lockstep(shared_room, measuring, clients=1) as lockstep:
        arrived = lockstep.arrivals(1)
        if not arrived:
            _result(lockstep)
            fail("no request came: one for each client is to be sent", sent="measure(..., clients=1)")
        request = arrived[0].request
    require(
        request.method == "POST",
        f"a {request.method} was sent: /chat_stream takes a POST",
        expected="POST /chat_stream",
        got=f"{request.method} {request.target}",
    )
    require(
        request.target == "/chat_stream",
        "`url` is the whole address: nothing is to be added to it",
        expected="POST /chat_stream",
        got=f"{request.method} {request.target}",
    )
    body = request.data if isinstance(request.data, dict) else {}
    for name, value in {"prompt": PROMPT, "max_new_tokens": MOST}.items():
        require(
            type(body.get(name)) is type(value) and body[name] == value,
            f"the body has not the {name} that measure was given",
            expected=f"JSON with {json.dumps({name: value}, ensure_ascii=False)}",
            got=request.body.decode("utf-8", "replace") or "an empty body",
        )


def test_returns_a_measurement(shared_room):
    seen = measured(shared_room, whole(), scene=measuring_by_its_own_clock)
    require(
        seen.type == "Measurement" and seen.fields is not None,
        "measure has to return a Measurement, which is a dataclass",
        got=seen.type + (" (no dataclass)" if seen.fields is None else ""),
    )
    missing = [name for name in FIELDS if name not in seen.fields]
    require(not missing, f"Measurement lacks {', '.join(missing)}", got=", ".join(seen.fields))
    for field, expected in {"clients": 1, "requests": 1, "errors": 0}.items():
        compare(seen, field, expected, f"`{field}` is wrong after one request that went well")
    for field in FIELDS[3:]:
        require(
            type(seen.values[field]) in (int, float) and seen.values[field] >= 0,
            f"`{field}` has to be a number",
            sent=seen.sent + ", without a `clock` of the test's",
            got=seen.values[field],
        )


def test_each_measurement_begins_anew(shared_room):
    slow = whole(LATE, 2, 2 * LATE)
    seen = measured(shared_room, slow, whole(), clients=1, times=2)
    seen.sent = "two calls of measure(..., clients=1), one after the other; the first one is slow"
    mistake = "the second measurement has values of the first: nothing is to be kept between calls"
    compare(seen, "requests", 1, mistake)
    _not_late(seen, mistake)


def test_all_clients_run_at_once(shared_room):
    clients = MANY
    sent = f"measure(..., clients={clients}); no request is answered before all have come"
    with Lockstep(shared_room, measuring, clients=clients) as lockstep:
        arrived = lockstep.arrivals(clients)
        if len(arrived) < clients:
            mistake = f"only {len(arrived)} of {clients} requests come before one is answered"
            if len(arrived) == 1:
                mistake = "one request after the other: the second waits for the first one's answer"
            if len(arrived) == 100:
                mistake = "only 100 requests run at once: by default httpx opens no more connections"
            if not arrived:
                _result(lockstep)
            fail(mistake, sent=sent, expected=f"{clients} requests at once", got=len(arrived))
        for data in whole().values():
            lockstep.step(1.0, {each: data for each in arrived})
        more = lockstep.arrivals(1, patience_s=0.05)
        require(not more, "there is a request too many", sent=sent, got=f"more than {clients}")
        seen = types.SimpleNamespace(**_result(lockstep), sent=sent)
    for field, expected in {"clients": clients, "requests": clients, "errors": 0}.items():
        compare(seen, field, expected, f"`{field}` is wrong after {clients} that went well")


def test_ttft_is_from_sending_to_the_first_token(shared_room):
    seen = measured(
        shared_room,
        {
            1.0: STREAM,
            2.0: chunk(b": ping\n\n"),
            4.0: chunk(token("one")),
            6.0: chunk(token("two")),
            7.0: chunk(done(2)) + END,
        },
    )
    seen.sent = "headers after 1 s, a comment after 2 s, tokens after 4 and 6 s, done after 7 s"
    for field in ("ttft_p50_s", "ttft_p95_s"):
        got = seen.values[field]
        require(
            type(got) is not float or not 0 <= got < 0.5,
            "the times are not read from `clock`, or do not begin when the request is sent",
            sent=seen.sent,
            expected=f"{field}=4.0",
            got=f"{field}={got}",
        )
        compare(
            seen,
            field,
            4.0,
            "the time to first token is from sending the request to the first token event",
            [
                (1.0, "the headers are no token: time to first token ends with a token event"),
                (2.0, "a comment (ping) is no token: time to first token ends with a token event"),
                (3.0, "time to first token begins when the request is sent, not with the headers"),
                (7.0, "nothing is read while the answer comes: all token events have one time"),
                (4000.0, "the times are in seconds, as the clock's are"),
            ],
        )


def test_itl_is_between_token_events(shared_room):
    seen = measured(
        shared_room,
        {
            0.5: STREAM,
            10.0: chunk(token("a")),
            12.0: chunk(token("b")),
            14.0: chunk(b": ping\n\n", token("c")),
            15.0: chunk(b": ping\n\n"),
            16.0: chunk(token("d")),
            46.0: chunk(done(4)) + END,
        },
    )
    seen.sent = "tokens after 10, 12, 14 and 16 s, comments between them, done after 46 s"
    for field in ("itl_p50_s", "itl_p95_s"):
        got = seen.values[field]
        mistake = "inter-token latency is from one token event to the next one"
        if type(got) is float and got > 10:
            mistake = "`done` is no token: the time before it is no inter-token latency"
        elif type(got) is float and got > 2:
            mistake = "the time to the first token is no inter-token latency"
        compare(
            seen,
            field,
            2.0,
            mistake,
            [
                (0.0, "nothing is read while the answer comes: all token events have one time"),
                (1.0, "a comment (ping) is no token, and a piece of bytes from the network is none"),
            ],
        )


def test_requests_do_not_mix(shared_room):
    seen = measured(
        shared_room,
        {0.0: STREAM, 1.0: chunk(token("a")), 5.0: chunk(token("b")), 9.0: chunk(token("c")),
         13.0: chunk(token("d")), 15.0: chunk(done(4)) + END},
        {0.0: STREAM, 3.0: chunk(token("e")), 7.0: chunk(token("f")), 11.0: chunk(token("g")),
         15.0: chunk(token("h"), done(4)) + END},
    )  # fmt: skip
    seen.sent = "one request gets tokens after 1, 5, 9, 13 s, another one after 3, 7, 11, 15 s"
    for field in ("itl_p50_s", "itl_p95_s"):
        compare(
            seen,
            field,
            4.0,
            "inter-token latency is between token events of one request",
            [(2.0, "the tokens of different requests are mixed: take the intervals of each one")],
        )


def test_percentiles_of_inter_token_latency(shared_room):
    # the places around 50 % and 95 %, where definitions differ, have the same value
    gaps = [1.0] * 24 + [2.0] * 13 + [3.0] * 2 + [50.0]
    random.Random(0).shuffle(gaps)
    script = {0.0: STREAM, 1.0: chunk(token("first"))}
    at = 1.0
    for gap in gaps:
        at += gap
        script[at] = chunk(token("next"))
    script[at] += chunk(done(1 + len(gaps))) + END
    seen = measured(shared_room, script)
    seen.sent = "between 41 tokens: 24 x 1 s, 13 x 2 s, 2 x 3 s, 1 x 50 s, in any order"
    mean = sum(gaps) / len(gaps)
    is_mean = [(mean, "p50 is the median: the mean follows one slow token, which nobody else saw")]
    compare(seen, "itl_p50_s", 1.0, "p50 is the median of all intervals", is_mean)
    compare(
        seen,
        "itl_p95_s",
        3.0,
        "p95 is the value that 95 % of all intervals do not exceed",
        [(50.0, "p95 is not the largest value: 95 % of all intervals do not exceed it")],
    )


def test_percentiles_of_time_to_first_token(shared_room):
    waits = [1.0] * 11 + [2.0] * 7 + [3.0] * 2
    seen = measured(shared_room, *(whole(at, 2, 4.0) for at in waits))
    seen.sent = "20 requests with a first token after 1 s (11), 2 s (7), 3 s (2)"
    is_mean = [(sum(waits) / len(waits), "p50 is the median, not the mean")]
    compare(seen, "ttft_p50_s", 1.0, "p50 is the median of all requests", is_mean)
    compare(seen, "ttft_p95_s", 3.0, "p95 is the value that 95 % of the requests do not exceed")


def test_a_piece_from_the_network_is_no_event(shared_room):
    split = token("你好") + token("。")
    middle = split.index("好".encode()) + 1
    seen = measured(
        shared_room,
        {
            1.0: STREAM + chunk(token("a"), token("b"), token("c")),
            2.0: chunk(split[:9]),
            3.0: chunk(split[9:middle]),
            4.0: chunk(split[middle:-1]),
            5.0: chunk(split[-1:], done(5)[:20]),
            10.0: chunk(done(5)[20:]) + END,
        },
    )
    seen.sent = "3 events in one piece, 2 more in four pieces, one of which ends in the middle of 好"
    _went_well(seen)
    _rate(seen, 5, "a piece of bytes is no event: it can hold several, or a part of one")


def test_what_is_a_token_event(shared_room):
    seen = measured(
        shared_room,
        {
            1.0: STREAM + chunk(b": ping\n\n", token("[DONE]")),
            2.0: chunk(token("event: error\ndata: ", end="\r\n"), token("a", end="\r\n")),
            3.0: chunk(token("\n\n"), b": ping\r\n\r\n", token('data: {"token": "b"}')),
            5.0: chunk(done(5).replace(b"\n", b"\r\n")) + END,
        },
    )
    seen.sent = "5 token events, some with CRLF, one with the text [DONE]; comments; done"
    _went_well(seen)
    _rate(seen, 5, "each event without a name is a token; comments, `done` and texts inside are none")


def test_tokens_per_s_is_of_the_whole_run(shared_room):
    seen = measured(shared_room, whole(1.0, 2, 4.0), whole(1.0, 4, 8.0), whole(1.0, 6, 10.0))
    seen.sent = "3 requests: 2 tokens in 4 s, 4 in 8 s, 6 in 10 s"
    each = [2 / 4, 4 / 8, 6 / 10]
    _rate(
        seen,
        12,
        "tokens per second are all token events, divided by the time of the whole run",
        [
            (sum(each), "the rates of the requests do not add up: some end before others"),
            (sum(each) / 3, "that is the rate of one request; the server's is of all of them"),
            (12 / 22, "the requests ran at once: their times do not add up"),
        ],
    )


def _went_well(seen):
    compare(seen, "errors", 0, "a request that went well is counted as an error")


def _rate(seen, count, mistake, known=()):
    known = [*known, ((count + 1) / seen.seconds, "`done` is no token")]
    compare(seen, "tokens_per_s", count / seen.seconds, mistake, known)


def test_another_status_is_an_error(shared_room):
    seen = _with_failures(
        shared_room,
        whole(),
        {LATE: response(429, '{"error": "Rate limit exceeded"}', retry_after=30)},
        {LATE: response(500, "Internal Server Error", "text/plain")},
    )
    seen.sent = f"3 requests: one goes well, two get a 429 and a 500 after {LATE:.0f} s"
    compare(seen, "errors", 2, "an answer with another status than 200 is an error")
    _not_late(seen)


def test_an_error_event_is_an_error(shared_room):
    error = b'event: error\ndata: {"message": "the model is broken"}\n\n'
    fails = LATE_TOKENS | {3 * LATE: chunk(error) + END}
    seen = _with_failures(shared_room, whole(), fails, whole())
    seen.sent = f"3 requests: two go well, one gets a token after {LATE:.0f} s, then event: error"
    compare(seen, "errors", 1, "an answer with an `error` event is an error")
    _not_late(seen)


def test_a_cut_answer_is_an_error(shared_room):
    seen = _with_failures(
        shared_room,
        whole(),
        whole(),
        LATE_TOKENS | {3 * LATE: END},
        LATE_TOKENS | {3 * LATE: CLOSE},
        LATE_TOKENS | {3 * LATE: RESET},
    )
    seen.sent = "5 requests: two go well, one ends after two tokens without `done`, two break off"
    compare(
        seen,
        "errors",
        3,
        "an answer that breaks off is an error",
        [(2, "an answer that ends without its `done` event is an error: tokens are missing")],
    )
    _not_late(seen)


def test_no_server_is_an_error(shared_room):
    with NobodyListens() as nobody:
        try:
            result = shared_room.play(measuring, url=f"{nobody.url}/chat_stream", clients=3)
        except Raised as raised:
            raise _ended_by_one(raised) from None
    if "not_awaitable" in result:
        fail("measure has to be a coroutine function: async def measure(...)")
    seen = types.SimpleNamespace(**result, sent="measure(..., clients=3) where no server listens")
    compare(seen, "errors", 3, "a request that finds no server is an error")


def _with_failures(room, *scripts):
    try:
        return measured(room, *scripts)
    except Raised as raised:
        raise _ended_by_one(raised) from None


def _ended_by_one(raised):
    return Mistake(
        "a failed request is to be counted in `errors`; here it ends the whole measurement",
        expected="a Measurement",
        got=f"{raised.error['type']}: {raised.error['message']}".rstrip(": "),
        where=raised.error["where"],
        detail=raised.detail,
    )


def _not_late(seen, mistake="a failed request counts in `errors`, and not in the times"):
    for field in ("ttft_p95_s", "itl_p95_s"):
        got = seen.values[field]
        late = type(got) in (int, float) and got > LATE / 20
        require(not late, mistake, sent=seen.sent, expected=f"{field}=1.0", got=f"{field}={got}")
