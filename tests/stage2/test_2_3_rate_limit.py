"""2.3: a limit for each client address, over a real socket, around a handler of the test's own.

Each test comes from loopback addresses of its own, and its windows are so long that none ends in
the middle of a test. Where time has to pass, the clock stands still unless the test moves it; only
who is not let in again by that clock gets a real second, since a timer may really wait.
"""

import itertools
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from urllib.parse import urlsplit

import pytest

from course.grading.kit.clock import Clock, set_clocks
from course.grading.kit.http import facts
from course.grading.kit.processes import free_port
from course.grading.kit.rest import Resting
from course.grading.kit.scripted_handler import Model, ScriptedHandler
from course.grading.kit.sse import Stream, has_address
from course.grading.mistakes import fail, require

WAIT_S = 3.0
"""For what a free machine does in milliseconds."""

FINE = {"prompt": "hi"}
PIECES = ["one ", "two ", "three "]
ANSWERS = {"hi": PIECES, "breaks": PIECES, "long": ["word "] * 60}
FAILS = {"fails": [0, "no"], "breaks": [1, "no"]}

MANY = 20
"""Requests at once to each of two apps."""

NO_ADDRESSES = (
    "this machine has no second loopback address, so the test cannot tell whether each client"
    " has its own count. On macOS, this adds one: sudo ifconfig lo0 alias 127.0.0.2"
)
NO_REDIS = (
    "there is no redis-server, so the test cannot tell whether two apps on one Redis"
    " share their count. To fix that: apt-get install redis-server, or brew install redis"
)

_numbers = itertools.count(2)


def an_address():
    """A loopback address that no other test comes from; None where there is only one."""
    address = f"127.0.0.{next(_numbers)}"
    return address if has_address(address) else None


# in the room


def app(answer, inside, limit=None, storage_uri=None, **script):
    """The answer's app around a scripted handler; without a limit, with its own defaults."""
    options = {"limit": limit, "storage_uri": storage_uri}
    options = {name: value for name, value in options.items() if value is not None}
    return answer.create_app(ScriptedHandler(inside, ANSWERS, **script), **options)


def app_by_the_clock(answer, inside, clock_file, **options):
    """As `app`, with a clock that the test moves."""
    set_clocks(clock_file)
    # once more, for what it has imported from `time`
    answer.__spec__.loader.exec_module(answer)
    return app(answer, inside, **options)


def making(answer, inside, **options):
    """What comes of calling create_app."""
    return inside.outcome(answer.create_app, ScriptedHandler(inside), **options)


# what the tests share


class Client:
    """Requests from one address, each on a connection of its own."""

    def __init__(self, room, url, address=None):
        self.room, self.url, self.address = room, url, address or an_address()

    def start(self, body=FINE, **request):
        """`request` is what Stream takes: `headers`, `path`."""
        return Stream(self.room, self.url, body, address=self.address, **request)

    def ask(self, body=FINE, **request):
        """The Reply."""
        stream = self.start(body, **request)
        if not stream.ended(WAIT_S):
            raise self.room.hung(
                "a request over the limit waits: refuse it at once, with a 429"
                if stream.status is None
                else "POST /chat_stream never ended",
                got=str(stream) or "nothing",
            )
        return stream.reply()

    def break_off(self):
        """Sends a request without the end of its body, and leaves."""
        place, before = urlsplit(self.url), self.room.arrived("/chat_stream")
        source = (self.address, 0) if self.address else None
        with socket.create_connection((place.hostname, place.port), source_address=source) as connection:
            head = "POST /chat_stream HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            connection.sendall(f'{head}content-length: 99\r\n\r\n{{"prompt": "h'.encode())
            self.room.wait(
                lambda: self.room.arrived("/chat_stream") > before, "a request does not reach the app", WAIT_S
            )
            self.room.turns()
        self.room.turns()

    def let_in(self, count, limit):
        """Sends so many requests, all of which the limit allows."""
        for number in range(1, count + 1):
            self.is_let_in(self.ask(), f"request {number} of {count} under a limit of {limit}")

    def is_let_in(self, reply, which, mistake=None):
        if reply.status == 429:
            fail(
                mistake or REFUSES_TOO_MANY,
                sent=which,
                expected=200,
                **facts(self.room, reply),
            )
        require(
            reply.status == 200,
            "a request within the limit does not get a 200",
            sent=which,
            **facts(self.room, reply),
        )

    def is_refused(self, mistake, sent, body=FINE, **request):
        """Sends a request that the limit does not allow; its Reply."""
        reply = self.ask(body, **request)
        if is_answered(reply):
            fail(mistake, sent=sent, expected=429, got="200: it was admitted")
        require(
            reply.status == 429,
            f"a request over the limit does not get a 429: the status is {reply.status}"
            + (", although no answer follows" if reply.status == 200 else ""),
            sent=sent,
            expected=429,
            **facts(self.room, reply),
        )
        return reply


def is_answered(reply):
    """Whether it is an answer of the model's, with or without pieces."""
    return reply.status == 200 and ('"token"' in reply.text or '"pieces"' in reply.text)


def over(count, limit):
    return f"{count} requests from one address in a row, under a limit of {limit}"


REFUSES_TOO_MANY = "the limit refuses too many requests: a request within it gets a 429"
NOTHING_IS_REFUSED = "the limit does not work: it admitted one request too many"


# the tests


def test_the_limit_lets_so_many_in_and_no_more(shared_room):
    for limit, count in (("3/day", 3), ("1/day", 1), ("2 per day", 2)):
        if " " in limit:
            made = shared_room.play(making, limit=limit)
            require(
                "raised" not in made,
                "`limit` is not read as `limits` reads it: limits.parse knows every notation",
                sent=f'create_app(handler, limit="{limit}")',
                expected="an app",
                got=made.get("said"),
                where=made.get("where"),
            )
        client = Client(shared_room, shared_room.serve(app, limit=limit))
        client.let_in(count, limit)
        for more in (1, 2):
            client.is_refused(NOTHING_IS_REFUSED, over(count + more, limit))


def test_without_a_limit_it_is_50_a_minute(shared_room):
    url = shared_room.serve(app)
    for _ in range(3):  # a window that follows the clock may end in the middle; not three times
        client = Client(shared_room, url)
        client.let_in(50, "50/minute, the default when it is left out")
        reply = client.ask()
        if not is_answered(reply):
            break
    sent = "51 requests to create_app(handler)"
    require(
        reply.status == 429,
        "without `limit`, the 51st request within a minute is not refused"
        if is_answered(reply)
        else "without `limit`, the 51st request within a minute does not get a 429",
        sent=sent,
        expected=429,
        **facts(shared_room, reply),
    )

    def more_than_a_minute(reply):
        said = reply.headers.get("retry-after", "")
        return said.isascii() and said.isdigit() and int(said) > 60

    if more_than_a_minute(reply):
        client = Client(shared_room, shared_room.serve(app, limit="1/minute"))
        client.ask()
        # a Retry-After that is wrong under any limit is another test's concern
        require(
            more_than_a_minute(client.ask()),
            "without `limit`, the window is longer than a minute",
            sent=sent,
            expected="Retry-After: at most 60",
            got=f"Retry-After: {reply.headers['retry-after']}",
        )


def test_a_refusal_says_when_to_come_back(shared_room):
    for limit, longest in (("1/day", 86_400), ("1/hour", 3600), ("1/second", 1)):
        client = Client(shared_room, shared_room.serve(app, limit=limit))
        statuses = []
        while len(statuses) < 8 and 429 not in statuses:
            reply = client.ask()
            statuses.append(reply.status)
        if 429 not in statuses:
            if longest == 1 and statuses.count(200) == 8:
                continue  # the machine is slow: each request came in a window of its own
            client.is_refused(NOTHING_IS_REFUSED, over(9, limit))
        said = reply.headers.get("retry-after")
        require(
            said is not None,
            "a 429 has no Retry-After: the client is not told when to come back",
            sent=over(2, limit),
            expected=f"Retry-After: a whole number from 1 to {longest}",
            got=f"429 with these headers: {', '.join(reply.headers)}",
        )
        require(
            said.isascii() and said.isdigit() and 1 <= int(said) <= longest,
            "Retry-After is not a whole number of seconds from 1 to the length of the window",
            sent=f"more requests than {limit} allows",
            expected=f"a whole number from 1 to {longest}",
            got=f"Retry-After: {said}",
        )


HAIR_S = 0.01
"""More than floats lose, and less than any fraction of a second below."""

MINUTE = "2/minute"

REFUSED_AFTER_S = [0.25, 20.2, 29.7, 59.6]
"""Early and late in a minute, with more and with less than half a second over."""


def test_a_client_that_waits_as_told_is_let_in(room):
    clock = Clock()
    try:
        for after_s in REFUSED_AFTER_S:
            wait_as_told(room, clock, after_s)
        wait_as_told(room, clock, 70.2, "2/5 minutes", 300)
    finally:
        clock.close()


def wait_as_told(room, clock, after_s, limit=MINUTE, window_s=60):
    """Two clients with the same past: one comes back a second too early, one when it was told to."""
    early, told = (Client(room, room.serve(app_by_the_clock, clock_file=clock.file, limit=limit)) for _ in "12")

    def status(client):
        stream = client.start()
        return stream.status if stream.ended(WAIT_S) else None

    def until_refused(client):
        for _ in range(4):
            stream = client.start()
            if not stream.ended(WAIT_S) or stream.status != 200:
                break
        said = stream.headers.get("retry-after", "") if stream.status == 429 else ""
        return int(said) if said.isascii() and said.isdigit() else None

    for _ in range(2):
        status(early), status(told)
    clock.move(after_s)
    wait_s, told_s = until_refused(early), until_refused(told)
    # that it is refused, and told a whole number up to the window's length, are other tests' concerns
    if not wait_s or wait_s > window_s or wait_s != told_s:
        return
    sent = f"3 requests under a limit of {limit}, the third {after_s} s after the others"
    clock.move(max(0.0, wait_s - 1 - HAIR_S))
    require(
        wait_s == 1 or status(early) != 200,
        "Retry-After is too long: a client that came back more than a second earlier would be admitted",
        sent=sent,
        expected="the seconds until the next request is admitted, rounded up",
        got=f"Retry-After: {wait_s}; after {wait_s - 1 - HAIR_S:.2f} s, a request is admitted",
    )
    clock.move(wait_s + HAIR_S - max(0.0, wait_s - 1 - HAIR_S))
    if status(told) == 429:
        clock.move(window_s)
        # that nobody is ever let in again is another test's concern
        require(
            status(told) == 429,
            "Retry-After is too short: a client that waits that long is refused again. Round up",
            sent=f"{sent}; then one more request after Retry-After has passed",
            expected=200,
            got=f"Retry-After: {wait_s}; after {wait_s + HAIR_S:.2f} s, a request gets a 429 again",
        )


def test_a_refused_request_costs_the_model_nothing(shared_room):
    client = Client(shared_room, shared_room.serve(app, limit="2/day"))
    client.let_in(2, "2/day")
    model = Model(shared_room)
    before = model.steps()
    for number in (3, 4):
        client.is_refused(NOTHING_IS_REFUSED, over(number, "2/day"))
    steps = model.steps() - before
    require(
        steps == 0,
        "a refused request still makes the model run: check the limit before you call the handler",
        expected="0 steps for 2 refused requests",
        got=f"{steps} steps",
    )


SAME_CLIENT = {
    "a query string": {"path": "/chat_stream?session=2"},
    "a different User-Agent": {"headers": {"user-agent": "another/2.0"}},
    "a cookie": {"headers": {"cookie": "session=2"}},
    "an API key": {"headers": {"authorization": "Bearer 2", "x-api-key": "2"}},
    "a different prompt": {"body": {"prompt": "something else"}},
}
"""What may differ between requests from one address."""


def test_each_address_has_a_count_of_its_own(shared_room, not_tested):
    url = shared_room.serve(app, limit="2/day")
    one, other = an_address(), an_address()
    has_other, one = other is not None, Client(shared_room, url, one)
    one.let_in(2, "2/day")
    one.is_refused(NOTHING_IS_REFUSED, over(3, "2/day"))
    for what, request in SAME_CLIENT.items():
        one.is_refused(
            f"with {what}, the same address gets a new count: count by client address",
            f"{over(4, '2/day')}, the last one with {what}",
            **request,
        )
    if not has_other:
        not_tested(NO_ADDRESSES)
        return
    other = Client(shared_room, url, other)
    other.is_let_in(
        other.ask(),
        f"2 requests from {one.address}, then one from {other.address}, under a limit of 2/day",
        "one client's requests count against another: count by client address",
    )


def test_forwarded_addresses_are_not_believed(shared_room):
    claims = {
        "x-forwarded-for": "203.0.113.{}",
        "x-real-ip": "203.0.113.{}",
        "forwarded": "for=203.0.113.{}",
        "x-client-ip": "203.0.113.{}",
        "cf-connecting-ip": "203.0.113.{}",
        "true-client-ip": "203.0.113.{}",
    }
    # uvicorn's own ProxyHeadersMiddleware believes this address
    client = Client(shared_room, shared_room.serve(app, limit="2/day"), "127.0.0.1")
    client.let_in(2, "2/day")
    client.is_refused(NOTHING_IS_REFUSED, over(3, "2/day"))
    for number, (name, value) in enumerate(claims.items(), 7):
        claim = {name: value.format(number)}
        client.is_refused(
            f"the header {name.title()} is trusted: anyone can put anything in it",
            f"a request over the limit, with {name.title()}: {claim[name]}",
            headers=claim,
        )


def counts(room, what, body, expected, **request):
    """Requires that such a request counts, and once."""
    client = Client(room, room.serve(app, limit="2/day", fails=FAILS))
    for number in (1, 2):
        stream = client.start(body.encode(), **request)
        if not stream.ended(WAIT_S):
            raise room.hung(f"{what} got no answer", sent=stream.sent, got=str(stream))
        require(
            stream.status != 429,
            REFUSES_TOO_MANY,
            sent=f"{stream.sent} ({number} of 2 under a limit of 2/day)",
            expected=expected,
            got=str(stream),
        )
    client.is_refused(
        f"{what} is not counted: every request counts as soon as it arrives",
        f"{stream.sent}, twice under a limit of 2/day; then a third request",
    )


def test_a_body_that_is_422_counts(shared_room):
    for body in ('{"prompt": ""}', '{"text": "hi"}'):
        counts(shared_room, "a request that fails validation", body, 422)


def test_a_body_that_is_not_json_counts(shared_room):
    form = {"content-type": "application/x-www-form-urlencoded"}
    counts(shared_room, "a request that is not JSON", '{"prompt": "hi"', 422)
    counts(shared_room, "a request with an empty body", "", 422)
    counts(shared_room, "a request that is not application/json", "prompt=hi", 422, headers=form)


def test_a_request_that_the_model_fails_counts(shared_room):
    for prompt, expected in (("fails", "a 5xx"), ("breaks", "one piece and an error event")):
        body = json.dumps({"prompt": prompt})
        counts(shared_room, "a request on which the model fails", body, expected)


def test_a_stream_in_progress_counts(shared_room):
    prompts = ["first", "second"]
    client = Client(shared_room, shared_room.serve(app, limit="2/day", held=prompts))
    for prompt in prompts:
        Model(shared_room).begun(client.start({"prompt": prompt}), prompt)
    client.is_refused(
        "a stream in progress is not counted: every request counts as soon as it arrives",
        "2 requests that are still streaming, then a third, under a limit of 2/day",
    )
    client = Client(shared_room, shared_room.serve(app, limit="2/day"))
    for _ in range(2):
        client.break_off()
    client.is_refused(
        "a request that breaks off is not counted: every request counts as soon as it arrives, before its body is read",
        "2 requests that break off in the middle of their bodies, then a third, under a limit of 2/day",
    )


def test_what_is_let_in_still_streams(shared_room):
    client = Client(shared_room, shared_room.serve(app, limit="2/day", held=["hi"]))
    model, stream = Model(shared_room), client.start()
    model.begun(stream, "hi")
    for number in range(1, len(PIECES) + 1):
        model.asked("hi", number, WAIT_S)
        model.let("hi")
        if not stream.wait(lambda count=number: len(stream.events) >= count, WAIT_S):
            where = shared_room.where() or None
            came = len(stream.events)
            model.let("hi", None)
            stream.ended(WAIT_S)
            fail(
                "nothing streams with the limit added: all pieces arrived after the model had finished"
                if came == 0 and not stream.broken
                else f"with the limit added, the stream stops after {came} pieces",
                expected=f"piece {number} arrives while the model is working on piece {number + 1}",
                got=f"{came} pieces by then, and {len(stream.events)} events at the end",
                where=shared_room.last_error()[1] or where,
            )
    model.let("hi", None)
    stream.reply(WAIT_S)


def test_what_is_let_in_is_answered_as_in_2_2(shared_room):
    client = Client(shared_room, shared_room.serve(app, limit="9/day", fails=FAILS))

    def events(stream):
        return [(event.name, event.json) for event in stream.events]

    def asked(body):
        stream = client.start(body)
        return stream, stream.reply(WAIT_S)

    stream, reply = asked({"prompt": "hi", "max_new_tokens": 5, "temperature": 0.5})
    kind = reply.headers.get("content-type", "").split(";")[0]
    require(
        (reply.status, kind) == (200, "text/event-stream"),
        "with the limit added, the answer is no longer an event stream",
        expected="200 and text/event-stream",
        **facts(shared_room, reply),
    )
    pieces = [("", {"token": piece}) for piece in PIECES]
    require(
        events(stream)[:-1] == pieces
        and stream.events[-1].name == "done"
        and (stream.events[-1].json or {}).get("pieces") == len(PIECES),
        "with the limit added, the events are not those of 2.2",
        expected=f"{len(PIECES)} pieces and `done`",
        got=reply.text,
    )
    talk = Model(shared_room).talk("hi")
    require(
        (talk["stream"], talk["max_new_tokens"], talk["temperature"]) == (True, 5, 0.5),
        "with the limit added, the handler is not called as in 2.2",
        expected="stream=True, max_new_tokens=5, temperature=0.5",
        got=talk,
    )
    for body in (b"", b"prompt=hi", b'{"prompt": ""}', b'{"prompt": "hi", "max_new_tokens": 0}'):
        stream, reply = asked(body)
        require(
            reply.status == 422,
            "with the limit added, an invalid body no longer gets a 422",
            sent=stream.sent,
            expected=422,
            **facts(shared_room, reply),
        )
    _, reply = asked({"prompt": "fails"})
    require(
        400 <= reply.status < 600,
        "with the limit added, an error before the first piece no longer shows in the status",
        expected="a 4xx or 5xx",
        got=str(reply),
    )
    stream, reply = asked({"prompt": "breaks"})
    require(
        [event.name for event in stream.events] == ["", "error"],
        "with the limit added, an error after the first piece is not reported as in 2.2",
        expected="one piece, then event: error",
        got=reply.text,
    )


def test_the_model_stops_when_the_client_leaves(shared_room):
    client = Client(shared_room, shared_room.serve(app, limit="2/day", held=["long"]))
    model, stream = Model(shared_room), client.start({"prompt": "long"})
    model.begun(stream, "long")
    model.let("long")
    stream.wait(lambda: len(stream.events) >= 1, 1.0)
    stream.leave_and_be_missed()
    steps = model.steps_after_leaving("long", 60)
    require(
        steps <= 3,
        f"with the limit added, the model ran {steps} more steps after the client had left",
        expected="at most 3 steps",
        got=f"{steps} steps for an answer that no one reads",
    )


def test_after_the_window_it_lets_in_again(room, another_room):
    """One client keeps asking, another one waits: both are let in when the window has passed."""
    limit, clock = "2/second", Clock()
    try:
        url = room.serve(app_by_the_clock, clock_file=clock.file, limit=limit)
        refused = refused_after_the_window(room, url, lambda: clock.now, clock.move)
    finally:
        clock.close()
    if refused:
        other = another_room()
        url = other.serve(app, limit=limit)
        refused = refused_after_the_window(other, url, time.monotonic, time.sleep)
    got = "still 429 after more than 2 seconds"
    require(
        "waits" not in refused,
        "after the window has passed, requests are still refused",
        sent="3 requests under a limit of 2/second, and one more after 1 second",
        expected=200,
        got=got,
    )
    require(
        not refused,
        "a refused request extends the window: a client that keeps trying is never admitted again",
        sent="3 requests under a limit of 2/second, and then one every 0.1 seconds",
        expected="200 as soon as 1 second has passed",
        got=got,
    )


def refused_after_the_window(room, url, now, wait):
    """Which of "waits" and "asks" are refused after the window of 2/second, by that clock."""
    for _ in range(5):  # on a slow machine, a window ends between the first request and the third
        asks, waits = Client(room, url), Client(room, url)
        statuses = [client.ask().status for client in (asks, waits) for _ in range(3)]
        last = now()
        if statuses[2] == statuses[5] == 429:
            break
    else:
        waits.is_refused(NOTHING_IS_REFUSED, over(4, "2/second"))

    def still_refused(clients):
        return [client for client in clients if client.ask().status == 429]

    refused = [asks]
    while refused and now() < last + 1.05:
        refused = still_refused(refused)
        wait(0.1)
    wait(max(0.0, last + 1.05 - now()))
    refused = still_refused([waits, *refused])
    while refused and now() < last + 2.5:
        wait(0.1)
        refused = still_refused(refused)
    return ["waits" if client is waits else "asks" for client in refused]


def test_two_apps_in_memory_do_not_share_a_count(shared_room):
    address, options = an_address(), {"storage_uri": "memory://"}
    first, second, _ = (
        Client(shared_room, shared_room.serve(app, limit=limit, **options), address)
        for limit in ("2/day", "2/day", "1/day")
    )
    for number in (1, 2):
        first.is_let_in(
            first.ask(),
            f"request {number} of 2 to an app with a limit of 2/day, after another was created with 1/day",
            "an app has another app's limit: keep it in create_app, not in the module",
        )
    first.is_refused(NOTHING_IS_REFUSED, over(3, "2/day"))
    second.is_let_in(
        second.ask(),
        "3 requests to one app, then one to another, both on memory://",
        "two apps share one count in memory: keep it in create_app, not in the module",
    )


@pytest.fixture
def redis():
    """(address, process) of a Redis server of the test's own on a free port; (None, None) where none is installed."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        yield None, None
        return
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        options += ["--save", "", "--appendonly", "no"]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 10
            while True:
                try:
                    with socket.create_connection(("127.0.0.1", port)) as connection:
                        connection.sendall(b"PING\r\n")
                        assert connection.recv(16) == b"+PONG\r\n"
                    break
                except ConnectionRefusedError:
                    assert server.poll() is None and time.monotonic() < until
                    time.sleep(0.005)
            yield f"redis://127.0.0.1:{port}", server
        finally:
            server.kill()
            server.wait()


def test_an_app_for_a_redis_that_does_not_answer_can_be_made(shared_room):
    uri = f"redis://127.0.0.1:{free_port()}"
    found = shared_room.play(making, storage_uri=uri)
    require(
        not {"ImportError", "ConfigurationError"} & set(found.get("raised", ())),
        "an app that uses Redis cannot even be created: a package is missing",
        sent=f'create_app(handler, storage_uri="{uri}")',
        expected="an app; the package `redis` is installed",
        got=found.get("said"),
        where=found.get("where"),
    )


def test_two_apps_on_one_redis_share_a_count(shared_room, another_room, redis, not_tested):
    redis_uri, server = redis
    if redis_uri is None:
        not_tested(NO_REDIS)
        return
    address = an_address()
    first, second = (
        Client(room, room.serve(app, limit="3/day", storage_uri=redis_uri), address)
        for room in (shared_room, another_room())
    )
    mistake = "two apps on one Redis do not share a count: each worker admits the full limit"
    sent = "3 requests to two apps on one Redis, under a limit of 3/day"
    for client in (first, second, first):
        client.is_let_in(client.ask(), sent)
    for client in (second, first):
        client.is_refused(mistake, f"{sent}, and one more")
    # another database: a count of its own
    urls = [client.room.serve(app, limit="3/day", storage_uri=f"{redis_uri}/1") for client in (first, second)]
    clients = [Client(old.room, url, address) for old, url in zip((first, second), urls, strict=True)]
    for client in clients:
        client.ask()  # now each app has a connection
    # Redis stands still until all of them have arrived and wait for it: both apps look before either counts
    rooms = [client.room for client in clients]
    goals = [room.arrived("/chat_stream") + MANY for room in rooms]
    server.send_signal(signal.SIGSTOP)
    streams = [client.start() for _ in range(MANY) for client in clients]
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        if [room.arrived("/chat_stream") for room in rooms] == goals and all(
            [Resting(room.pid).check(0.01) for room in rooms]
        ):
            break
    server.send_signal(signal.SIGCONT)
    replies = [stream.reply(WAIT_S) for stream in streams]
    let_in = sum(is_answered(reply) for reply in replies)
    refused = sum(reply.status == 429 for reply in replies)
    sent = f"2 requests, then {len(streams)} more at once, to two apps on one Redis, under a limit of 3/day"
    require(
        let_in <= 1,
        "too many concurrent requests are admitted: check and increment the count in one call, as `hit` does",
        sent=sent,
        expected="1 is admitted",
        got=f"{let_in} are admitted, and {refused} get a 429",
    )
    require(
        (let_in, refused) == (1, len(streams) - 1),
        "the limit does not hold for concurrent requests: admit exactly as many as it allows,"
        " and answer the rest with a 429",
        sent=sent,
        expected=f"1 is admitted, and {len(streams) - 1} get a 429",
        got=f"{let_in} are admitted, and {refused} get a 429",
    )
