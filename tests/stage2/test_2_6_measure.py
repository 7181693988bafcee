"""2.6: `measure` against servers of scripted behaviour, with a clock that the test moves.

The clock stands still unless the test moves it, so that every time is exact.
"""

import asyncio
import contextlib
import dataclasses
import inspect
import itertools
import json
import math
import random
import socket
import ssl
import time
import types
from numbers import Real

from course.grading.kit.clock import START, read_clock
from course.grading.kit.lockstep import CLOSE, Lockstep
from course.grading.kit.scripted_server import RESET, NobodyListens, head, response
from course.grading.mistakes import Hung, Mistake, Raised, fail, require

PROMPT = 'Say 你好 and "hi".\n'
MOST = 37
FIELDS = [
    *("clients", "requests", "errors"),
    *("ttft_p50_s", "ttft_p95_s", "itl_p50_s", "itl_p95_s", "tokens_per_s"),
]
SILENCE_S = 31.0
"""More than half a minute; httpx gives up after 5 s by default."""
AT_ONCE_S = 0.05
MANY = 120
"""More than the 100 connections that httpx opens by default."""


# in the room


async def measuring(answer, inside, url, clients, clock_file=None, times=1):
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
    values = {name: _number(inside, named.get(name)) for name in FIELDS}
    is_dataclass = dataclasses.is_dataclass(result) and not isinstance(result, type)
    return {
        "type": type(result).__name__,
        "fields": [field.name for field in dataclasses.fields(result)] if is_dataclass else None,
        "values": values,
    }


async def measuring_by_its_own_clock(answer, inside, url, clients, clock_file):
    return await measuring(answer, inside, url, clients)


async def measuring_in_silence(answer, inside, url, clients, clock_file):
    """As `measuring`. What gives up after some seconds without a byte does so here by the test's clock,
    or, where a socket waits by itself, at once."""
    test_time = read_clock(clock_file)
    # real time goes on, for what sleeps and looks again
    asyncio.get_running_loop().time = lambda: test_time() - START + time.monotonic()
    set_timeout = socket.socket.settimeout

    def hurried(self, seconds):
        set_timeout(self, AT_ONCE_S if seconds and seconds < SILENCE_S else seconds)

    socket.socket.settimeout = hurried
    try:
        return await measuring(answer, inside, url, clients, clock_file)
    finally:
        socket.socket.settimeout = set_timeout


def _number(inside, value):
    if isinstance(value, Real) and not isinstance(value, int):
        # numpy's are numbers too; JSON has no NaN
        return float(value) if math.isfinite(value) else str(float(value))
    return inside.plain(value)


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
    """What measure returns if its requests are answered so: .values, .seconds by the clock, and
    how many requests came .too_many."""
    clients = arguments.setdefault("clients", len(scripts))
    with Lockstep(room, scene, **arguments) as lockstep:
        lockstep.perform(*scripts)
        too_many = 0
        while too_many < 20 and lockstep.perform(scripts[-1], patience_s=0.0):
            too_many += 1
        result = _result(lockstep)
    seconds = lockstep.clock.now - START
    return types.SimpleNamespace(
        **result,
        clients=clients,
        seconds=seconds,
        too_many=too_many,
        sent=f"measure(..., clients={clients})",
    )


def _result(lockstep):
    result = lockstep.result()
    if "not_awaitable" in result:
        fail(
            "measure is not a coroutine function: it should be async def measure(...)",
            expected="await measure(...) returns a Measurement",
            got=f"measure(...) returns a {result['not_awaitable']}",
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
    path = "/qwen/chat_stream"
    with Lockstep(shared_room, measuring, path, clients=1) as lockstep:
        arrived = lockstep.arrivals(1)
        if not arrived:
            _result(lockstep)
            fail("no request arrived: send one for each client", sent="measure(..., clients=1)")
        request = arrived[0].request
    require(
        request.method == "POST",
        f"a {request.method} was sent: /chat_stream takes a POST",
        expected=f"POST {path}",
        got=f"{request.method} {request.target}",
    )
    require(
        request.target == path,
        "something was added to `url`: it is already the full address"
        if request.target.startswith(path)
        else "a part of `url` is lost: it is the full address, so send the request to exactly that",
        expected=f"POST {path}",
        got=f"{request.method} {request.target}",
    )
    body = request.data if isinstance(request.data, dict) else {}
    for name, value in {"prompt": PROMPT, "max_new_tokens": MOST}.items():
        require(
            type(body.get(name)) is type(value) and body[name] == value,
            f"the body does not contain the {name} that measure was called with",
            expected=f"JSON with {json.dumps({name: value}, ensure_ascii=False)}",
            got=request.body.decode("utf-8", "replace") or "an empty body",
        )


def test_returns_a_measurement(shared_room):
    seen = measured(shared_room, whole(), scene=measuring_by_its_own_clock)
    require(
        seen.type == "Measurement" and seen.fields is not None,
        "measure should return a Measurement, which is a dataclass",
        got=seen.type + (" (not a dataclass)" if seen.fields is None else ""),
    )
    require(
        seen.too_many == 0,
        "one request too many was sent: each client sends exactly one, with no warm-up",
        sent=seen.sent,
        expected="1 request",
        got=f"{1 + seen.too_many} requests",
    )
    missing = [name for name in FIELDS if name not in seen.fields]
    require(not missing, f"Measurement lacks {', '.join(missing)}", got=", ".join(seen.fields))
    for field, expected in {"clients": 1, "requests": 1, "errors": 0}.items():
        compare(seen, field, expected, f"`{field}` is wrong after one successful request")
    for field in FIELDS[3:]:
        require(
            type(seen.values[field]) in (int, float) and seen.values[field] >= 0,
            f"`{field}` is not a number",
            sent=seen.sent + ", without `clock`",
            got=seen.values[field],
        )


def test_each_measurement_begins_anew(shared_room):
    slow = whole(LATE, 2, 2 * LATE)
    seen = measured(shared_room, slow, whole(), clients=1, times=2)
    seen.sent = "two calls to measure(..., clients=1), one after the other; the first one is slow"
    mistake = "the second measurement contains values from the first: keep nothing between calls"
    compare(seen, "requests", 1, mistake)
    _not_late(seen, mistake)


def test_all_clients_run_at_once(shared_room):
    clients = MANY
    sent = f"measure(..., clients={clients}); no request is answered before all have arrived"
    with Lockstep(shared_room, measuring, clients=clients) as lockstep:
        arrived = lockstep.arrivals(clients)
        if len(arrived) < clients:
            mistake = f"only {len(arrived)} of {clients} requests arrive before the first one is answered"
            if len(arrived) == 1:
                mistake = "the requests are sent one after another: the second waits for the first one's answer"
            if len(arrived) == 100:
                mistake = "only 100 requests run at once: by default, httpx opens no more connections than that"
            if not arrived:
                _result(lockstep)
            fail(mistake, sent=sent, expected=f"{clients} requests at once", got=len(arrived))
        for data in whole().values():
            lockstep.step(1.0, {each: data for each in arrived})
        more = lockstep.arrivals(1, patience_s=0.05)
        require(not more, "one request too many was sent", sent=sent, got=f"more than {clients} requests")
        seen = types.SimpleNamespace(**_result(lockstep), sent=sent)
    for field, expected in {"clients": clients, "requests": clients, "errors": 0}.items():
        compare(seen, field, expected, f"`{field}` is wrong after {clients} successful requests")


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
            "the times are not read from `clock`, or do not start when the request is sent",
            sent=seen.sent,
            expected=f"{field}=4.0",
            got=f"{field}={got}",
        )
        compare(
            seen,
            field,
            4.0,
            "time to first token is wrong: it should be the time from sending the request to the first token event",
            [
                (1.0, "time to first token ends at the headers: it should end at the first token event"),
                (2.0, "time to first token ends at a comment (ping): it should end at the first token event"),
                (3.0, "time to first token starts at the headers: it should start when the request is sent"),
                (7.0, "nothing is read while the answer arrives: all token events get the same time"),
                (4000.0, "the times are not in seconds, which is the clock's unit"),
            ],
        )


def test_itl_is_between_token_events(shared_room):
    seen = measured(
        shared_room,
        {
            0.5: STREAM,
            10.0: chunk(token("a")),
            11.0: chunk(b": ping\n\n"),
            12.0: chunk(token("b")),
            13.0: chunk(b": ping\n\n"),
            14.0: chunk(b": ping\n\n", token("c")),
            15.0: chunk(b": ping\n\n"),
            16.0: chunk(token("d")),
            46.0: chunk(done(4)) + END,
        },
    )
    seen.sent = "tokens after 10, 12, 14 and 16 s, comments between them, done after 46 s"
    for field in ("itl_p50_s", "itl_p95_s"):
        got = seen.values[field]
        mistake = "inter-token latency is wrong: it should be the time from one token event to the next"
        if type(got) is float and got > 10:
            mistake = "the time before `done` is counted as an inter-token latency: `done` is not a token"
        elif type(got) is float and got > 2:
            mistake = "the time to the first token is counted as an inter-token latency"
        compare(
            seen,
            field,
            2.0,
            mistake,
            [
                (0.0, "nothing is read while the answer arrives: all token events get the same time"),
                (1.0, "a comment (ping) or a chunk of bytes from the network is counted as a token"),
            ],
        )
    single = {0.0: STREAM, 1.0: chunk(token("Hi")), 2.0: chunk(done(1)) + END}
    mistake = "an answer of a single token has no inter-token latency: NaN, None or 0.0 is expected"
    try:
        seen = measured(shared_room, single)
    except Raised as raised:
        raise Mistake(
            mistake,
            sent="one request, whose answer is a single token",
            got=raised.error["said"],
            where=raised.error["where"],
            detail=raised.detail,
        ) from None
    for field in ("itl_p50_s", "itl_p95_s"):
        require(
            seen.values[field] in ("nan", None, 0),
            mistake,
            sent="one request, whose answer is a single token",
            expected="NaN, None or 0.0",
            got=f"{field}={seen.values[field]}",
        )


def test_requests_do_not_mix(shared_room):
    seen = measured(
        shared_room,
        {0.0: STREAM, 1.0: chunk(token("a")), 5.0: chunk(token("b")), 9.0: chunk(token("c")),
         13.0: chunk(token("d")), 15.0: chunk(done(4)) + END},
        {0.0: STREAM, 3.0: chunk(token("e")), 7.0: chunk(token("f")), 11.0: chunk(token("g")),
         15.0: chunk(token("h"), done(4)) + END},
    )  # fmt: skip
    seen.sent = "one request gets tokens after 1, 5, 9, 13 s, and another after 3, 7, 11, 15 s"
    for field in ("itl_p50_s", "itl_p95_s"):
        compare(
            seen,
            field,
            4.0,
            "inter-token latency is wrong: it should be the time between token events of one request",
            [(2.0, "tokens from different requests are mixed: measure the intervals within each request")],
        )


def require_p50_and_p95(seen, name, values, what):
    """Requires the percentiles of these values, in the order in which they came, by either of the two
    usual definitions."""
    unsorted, values = values, sorted(values)
    count = len(values)
    low, high = values[(count - 1) // 2], values[count // 2]
    got = seen.values[f"{name}_p50_s"]
    mistake = f"p50 is not the median of all {what}"
    if type(got) not in (int, float):
        pass
    elif _is(got, sum(values) / count):
        mistake = f"p50 is the mean: one very slow value pulls it up, so take the median of all {what}"
    elif not low <= got <= high and _is(got, unsorted[(count - 1) // 2]):
        mistake = f"the {what} were not sorted: p50 is the one in the middle after sorting"
    elif got < low:
        mistake = f"p50 is too small: half of all {what} should be below the median"
    require(
        type(got) in (int, float) and low - 1e-6 <= got <= high + 1e-6,
        mistake,
        sent=seen.sent,
        expected=f"{name}_p50_s from {low} to {high}",
        got=f"{name}_p50_s={got}",
    )
    rank = values[math.ceil(0.95 * count) - 1]
    below, share = divmod(0.95 * (count - 1), 1)
    between = values[int(below)] + share * (values[int(below) + 1] - values[int(below)])
    got = seen.values[f"{name}_p95_s"]
    mistake = f"p95 is wrong: it should be the smallest value that 95% of all {what} do not exceed"
    if _is(got, values[-1]):
        mistake = f"p95 is the largest value: a smaller one already covers 95% of all {what}"
    elif type(got) is float and got > rank:
        mistake = f"p95 is too large: a smaller value already covers 95% of all {what}"
    elif type(got) is float and got < rank:
        mistake = f"p95 is too small: more than 5% of all {what} are larger"
    require(
        _is(got, rank) or _is(got, between),
        mistake,
        sent=seen.sent,
        expected=f"{name}_p95_s={rank}, or, interpolated as numpy does, {between:g}",
        got=f"{name}_p95_s={got}",
    )


def test_percentiles_of_inter_token_latency(shared_room):
    # 20: 95 % of them is a whole number
    gaps = [*map(float, range(1, 19)), 40.0, 100.0]
    shuffled = random.Random(0).sample(gaps, len(gaps))
    script = {0.0: STREAM, 1.0: chunk(token("first"))}
    at = 1.0
    for gap in shuffled:
        at += gap
        script[at] = chunk(token("next"))
    script[at] += chunk(done(1 + len(gaps))) + END
    seen = measured(shared_room, script)
    seen.sent = "21 tokens, with intervals of 1, 2, ... 17, 18, 40 and 100 s between them, in any order"
    require_p50_and_p95(seen, "itl", shuffled, "intervals")
    # each interval weighs the same, however many others its request has
    many = {0.0: STREAM} | {float(at): chunk(token("next")) for at in range(10, 110, 10)}
    many[100.0] += chunk(done(10)) + END
    few = {0.0: STREAM, 5.0: chunk(token("a")), 6.0: chunk(token("b"), done(2)) + END}
    got = measured(shared_room, many, few).values["itl_p50_s"]
    require(
        not _is(got, 1.0) and not _is(got, 5.5),
        "p50 is taken of each request first: put the intervals of all requests together, then take the median",
        sent="2 requests: nine intervals of 10 s, one interval of 1 s",
        expected="itl_p50_s=10.0",
        got=f"itl_p50_s={got}",
    )


def test_percentiles_of_time_to_first_token(shared_room):
    # 32: 95 % of them is 30.4, where rounding gives other values than rounding up
    waits = [*map(float, range(1, 31)), 60.0, 200.0]
    seen = measured(shared_room, *(whole(at, 2, 300.0) for at in waits))
    seen.sent = "32 requests with a first token after 1, 2, ... 29, 30, 60 and 200 s"
    require_p50_and_p95(seen, "ttft", waits, "times to first token")


def test_a_piece_from_the_network_is_no_event(shared_room):
    rest = token("你好") + token("。") + done(5)
    cuts = [
        2,  # in `data:`
        9,
        rest.index("好".encode()) + 1,
        rest.index(b"event:") - 1,
        rest.index(b"event:") + 3,
        len(rest) - 5,
    ]
    times = [2.0, 3.0, 4.0, 7.0, 8.0, 9.0, 11.0]
    pieces = [rest[at:until] for at, until in itertools.pairwise([0, *cuts, len(rest)])]
    seen = measured(
        shared_room,
        {1.0: STREAM + chunk(token("a"), token("b"), token("c"))}
        | {at: chunk(piece) for at, piece in zip(times[:-1], pieces[:-1], strict=True)}
        | {times[-1]: chunk(pieces[-1]) + END},
    )
    seen.sent = "3 events in one chunk; 2 more and done in 7 chunks, split inside `data:`, 好 and `event:`"
    mistake = "a chunk of bytes is mistaken for an event: it can hold several, or part of one"
    compare(seen, "errors", 0, mistake)
    _counted(seen, 5, mistake)


def test_what_is_a_token_event(shared_room):
    crlf = {
        1.0: STREAM + chunk(b": ping\r\n\r\n", token("a", end="\r\n"), token("b", end="\r\n")),
        5.0: chunk(done(2).replace(b"\n", b"\r\n")) + END,
    }
    texts = {
        1.0: STREAM + chunk(b": ping\n\n", token("[DONE]")),
        2.0: chunk(token("event: error\ndata: "), token("event: done\n\n")),
        3.0: chunk(b": ping\n\n", token('data: {"token": "b"}')),
        5.0: chunk(done(4)) + END,
    }
    for script, count, sent, mistake in (
        (crlf, 2, "2 token events and done, with CRLF line endings", "lines may end with CRLF"),
        (texts, 4, "4 tokens that read [DONE], event: error, event: done, data: ...; comments; done",
         "a token's text is only text, even if it looks like an event or [DONE]"),
    ):  # fmt: skip
        seen = measured(shared_room, script)
        seen.sent = sent
        compare(seen, "errors", 0, f"a successful request is counted as an error: {mistake}")
        _counted(
            seen,
            count,
            f"the tokens are miscounted: count each event without a name, but not comments or `done`; {mistake}",
        )


def test_tokens_per_s_is_of_the_whole_run(shared_room):
    # (token events, seconds to the last one, seconds to `done`)
    runs = [(2, 300.0, 400.0), (4, 600.0, 700.0), (6, 900.0, 1100.0)]
    seen = measured(
        shared_room,
        *(
            {0.0: STREAM, 100.0: chunk(token("first")), last: chunk(tokens(count - 1))}
            | {end: chunk(done(count)) + END}
            for count, last, end in runs
        ),
    )
    seen.sent = "3 requests: one gets 2 tokens in 400 s, one gets 4 in 700 s, and one gets 6 in 1100 s"
    adds_up = "the rates of the requests were added up, although some requests end before others"
    one_rate = "tokens per second is the rate of one request: it should count the tokens of all requests"
    known = [(15 / seen.seconds, "`done` is counted as a token"), (12 / seen.seconds / 3, one_rate)]
    for rates in ([n / end for n, _, end in runs], [n / last for n, last, _ in runs]):
        known += [(sum(rates), adds_up), (sum(rates) / 3, one_rate)]
    known += [
        (
            12 / (400 + 700 + 1100),
            "the durations of the requests were added up, although the requests ran at the same time",
        ),
        (12 / 900, "the run ends too early: it should end when the last answer has its `done`"),
        (
            12 / 800,
            "the run's start or end is wrong: it should start when the requests are sent and end with the last `done`",
        ),
        (
            3 * MOST / seen.seconds,
            "max_new_tokens is used as the number of tokens: count the token events that arrived",
        ),
    ]
    expected, got = 12 / seen.seconds, seen.values["tokens_per_s"]
    mistake = "tokens per second is wrong: divide all token events by the duration of the whole run"
    if type(got) is float and got > 20 * expected:
        mistake = "the duration of the run is not measured with `clock`"
    compare(seen, "tokens_per_s", expected, mistake, known)


def test_tokens_of_failed_requests_count(shared_room):
    error = b'event: error\ndata: {"message": "no"}\n\n'
    try:
        seen = measured(
            shared_room,
            whole(1.0, 8, 10.0),
            {0.0: STREAM, 1.0: chunk(tokens(5)), 8.0: chunk(error) + END},
            {0.0: STREAM, 1.0: chunk(tokens(3)), 9.0: CLOSE},
        )
    except Raised:
        return  # how failures are counted is another test's concern
    got = seen.values["tokens_per_s"]
    for count in (8, 11, 13):
        # other values are other tests' concerns
        require(
            not _is(got, count / seen.seconds),
            "the tokens of failed requests are not counted: the server did generate them",
            sent="3 requests: one gets 8 tokens and done, one gets 5 tokens and an error event,"
            " and one gets 3 tokens but no `done`",
            expected=f"tokens_per_s={16 / seen.seconds:g}: 16 tokens in {seen.seconds:g} s",
            got=f"tokens_per_s={got:g}: {count} tokens",
        )
    try:
        seen = measured(shared_room, {0.0: STREAM, 1.0: chunk(tokens(5)), 8.0: chunk(error) + END})
    except Raised:
        return
    require(
        seen.values["tokens_per_s"] not in ("nan", None, 0),
        "when all requests fail, their tokens are not counted: the server did generate them",
        sent="one request: 5 tokens and an error event",
        expected=f"tokens_per_s={5 / seen.seconds:g}: 5 tokens in {seen.seconds:g} s",
        got=f"tokens_per_s={seen.values['tokens_per_s']}",
    )


def test_silence_is_no_error(shared_room):
    sent = f"one request; {SILENCE_S:g} s until the headers and a token, and just as long until the rest"
    with Lockstep(shared_room, measuring_in_silence, clients=1) as lockstep:
        for arrived in lockstep.arrivals(1):
            for data in (STREAM + chunk(token("a")), chunk(token("b"), done(2)) + END):
                lockstep.clock.move(SILENCE_S)
                with contextlib.suppress(Hung):  # a blocked loop is another test's concern
                    shared_room.turns()  # so that timers notice
                time.sleep(3 * AT_ONCE_S)
                lockstep.step(0.0, {arrived: data})
        seen = types.SimpleNamespace(**_result(lockstep), sent=sent)
    compare(
        seen,
        "errors",
        0,
        "a server that is silent for half a minute is counted as an error: by default, httpx gives up after 5 s",
    )


def _counted(seen, count, mistake):
    """Requires so many token events; what their number is divided by has a test of its own."""
    got = seen.values["tokens_per_s"]
    if type(got) not in (int, float):
        return
    counted = got * seen.seconds
    if counted < 4 * count and math.isclose(counted, round(counted), abs_tol=1e-6):
        done_is_none = [((count + 1) / seen.seconds, "`done` is counted as a token")]
        compare(seen, "tokens_per_s", count / seen.seconds, mistake, done_is_none)


def test_another_status_is_an_error(shared_room):
    stream = head(404, "text/event-stream", transfer_encoding="chunked")
    seen = _with_failures(
        shared_room,
        whole(),
        {0.5: response(503, "Service Unavailable", "text/plain")},
        {LATE: response(429, '{"error": "Rate limit exceeded"}', retry_after=30)},
        {LATE: stream + chunk(tokens(2), done(2)) + END},
    )
    seen.sent = f"4 requests: one succeeds, and one gets a 503; {LATE:.0f} s later, one gets a 429 and one a 404"
    _failed(seen, 3, "an answer with a 4xx or 5xx is not counted as an error")
    _not_late(seen)


def test_an_error_event_is_an_error(shared_room):
    error = b'event: error\ndata: {"message": "the model is broken"}\n\n'
    fails = LATE_TOKENS | {3 * LATE: chunk(error) + END}
    ends = LATE_TOKENS | {3 * LATE: chunk(error, done(2)) + END}
    seen = _with_failures(shared_room, whole(), fails, ends, whole())
    seen.sent = f"4 requests: two succeed, two get a token after {LATE:.0f} s, then event: error, one of them also done"
    _failed(
        seen,
        2,
        "an answer with an `error` event is not counted as an error",
        [(1, "an answer with an `error` event is not counted as an error if a `done` follows")],
    )
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
    seen.sent = "5 requests: two succeed, one ends after two tokens without `done`, and two break off"
    _failed(
        seen,
        3,
        "an answer that breaks off is not counted as an error",
        [(2, "an answer that ends without its `done` event is not counted as an error: tokens are missing")],
    )
    _not_late(seen)


def test_no_server_is_an_error(shared_room):
    with NobodyListens() as nobody:
        try:
            result = shared_room.play(measuring, url=f"{nobody.url}/chat_stream", clients=3)
        except Raised as raised:
            raise _ended_by_one(raised) from None
    if "not_awaitable" in result:
        fail("measure is not a coroutine function: it should be async def measure(...)")
    seen = types.SimpleNamespace(
        **result, clients=3, too_many=0, sent="measure(..., clients=3) where no server listens"
    )
    _failed(seen, 3, "a request that cannot reach a server is not counted as an error")
    for field in FIELDS[3:]:
        require(
            seen.values[field] in ("nan", None, 0),
            f"`{field}` has a value although no request succeeded",
            sent=seen.sent,
            expected="NaN, None or 0.0",
            got=seen.values[field],
        )


def _failed(seen, errors, mistake, known=()):
    """Requires so many errors among all requests, each of which was sent once."""
    require(
        seen.too_many == 0,
        "a failed request was sent again: count it as an error, because each client sends only one request",
        sent=seen.sent,
        expected=f"{seen.clients} requests",
        got=f"{seen.clients + seen.too_many} requests",
    )
    all_failed = "one failed request ends the others, too: catch the errors of each request"
    if errors < seen.clients:
        known = [*known, (seen.clients, all_failed)]
    compare(seen, "errors", errors, mistake, known)
    compare(
        seen, "requests", seen.clients, "`requests` is wrong: it should count all requests sent, including failed ones"
    )
    compare(
        seen,
        "clients",
        seen.clients,
        "`clients` is wrong: it should be the number passed to measure, however many requests failed",
    )


def _with_failures(room, *scripts):
    try:
        return measured(room, *scripts)
    except Raised as raised:
        raise _ended_by_one(raised) from None


def _ended_by_one(raised):
    return Mistake(
        "a failed request ends the whole measurement: count it in `errors` instead",
        expected="a Measurement",
        got=raised.error["said"],
        where=raised.error["where"],
        detail=raised.detail,
    )


def _not_late(seen, mistake="the times include a failed request: it counts only in `errors`"):
    for field in ("ttft_p95_s", "itl_p95_s"):
        got = seen.values[field]
        late = type(got) in (int, float) and got > LATE / 20
        require(not late, mistake, sent=seen.sent, expected=f"{field}=1.0", got=f"{field}={got}")
