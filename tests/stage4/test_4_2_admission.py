"""4.2: the middleware around an app that does what the test says, message by message, without a server.

A client is a letter. Where it stands is told in words: in the app, waiting, refused. What has to happen is
waited for; what must not happen has not happened once the event loop has gone round many times with nothing
left to do.
"""

import asyncio
import functools
import json
import time

from course import answers
from course.grading.kit.asgi import LIMIT_S, SENT, Exchange, http, websocket
from course.grading.kit.sse import Stream
from course.grading.mistakes import fail, require

PATH = "/v1/chat/completions"
TURNS = 40
"""Of the event loop: more than any answer needs to pass a place on."""
EACH_TURN = range(12)
"""After so many turns of the event loop something else happens."""
HOUR_S = 3600.0
BEFORE = ("before", 1)
"""The client of those who have come before."""
BODY = {"type": "http.request", "body": b'{"model": "tiny-qwen"}', "more_body": False}
DISCONNECT = {"type": "http.disconnect"}
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
LAST = {"type": "http.response.body", "body": b"fine", "more_body": False}

APP, WAITS, REFUSED, GONE = "in the app", "waiting", "refused", "gone"
BOTH, LOST = "refused and in the app", "gone without a response"


# in the room: the app, the clients, and where they stand


class Own(OSError):
    """An error that no middleware knows; of the kind that is easily taken for a client who has left."""


class Returns(Exception):
    """Ends a visit to the app without an error."""


class Client(Exchange):
    """One request, and its visit to the app."""

    def __init__(self, hall, name, scope):
        super().__init__(hall.admission, {**scope, "client": (name, 1)})
        self.name, self.left, self.places = name, False, []
        self.orders = asyncio.Queue()
        self.receive = self.send = None
        self.cancelled = self.held_at_the_end = None

    @property
    def place(self):
        if self.places:
            return self.places[-1]
        if self.left:
            return GONE
        if self.status is not None:
            return REFUSED
        if self._task.done():
            return LOST + (f" ({self.error})" if self.error else "")
        return WAITS

    @property
    def error(self):
        """What the call of the middleware has raised, as text; None if nothing."""
        if not self._task.done():
            return None
        if self._task.cancelled():
            return "cancelled"
        error = self._task.exception()
        if error is not None and answers.raised_by_stub(error):
            raise error
        return error and f"{type(error).__name__}: {error}"

    def leave(self):
        self.left = True
        self.give(DISCONNECT)

    def cancel(self):
        self.left = True
        super().cancel()

    def do(self, order):
        """`order(client)` is awaited in the client's visit to the app; its result can be awaited."""
        result = asyncio.get_running_loop().create_future()
        self.orders.put_nowait((order, result))
        return result

    def answer(self):
        """The app answers, and ends."""
        self.do(answers_and_returns)

    def end(self):
        """The app ends, and has sent nothing."""
        self.do(returns)


async def answers_and_returns(client):
    await client.send(START)
    await client.send(LAST)
    raise Returns


async def returns(client):
    raise Returns


class Otherwise(Exception):
    """Somebody is not where the story wants them."""


class Hall:
    """An Admission around an app, and those who come. Used as `async with Hall(...) as hall`; at the end
    `hall.told` is None, or what was otherwise than it has to be."""

    def __init__(self, answer, *limits, beside_others=False, **more):
        self.clients, self.entered, self.most, self.told = {}, [], 0, None
        max_running, max_waiting = limits
        more = {"max_running": max_running, "max_waiting": max_waiting, **more}
        self.limits = ", ".join(f"{name}={value!r}" for name, value in more.items())
        if not beside_others:
            again(answer)
        self.admission = answer.Admission(self.app, **more)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, traceback):
        for client in self.clients.values():
            Exchange.cancel(client)
            if client.held_at_the_end:
                client.held_at_the_end.set()
        return kind is Otherwise

    async def app(self, scope, receive, send):
        client = self.clients[scope["client"][0]]
        client.receive, client.send = receive, send
        client.places.append(APP if client.status is None else BOTH)
        self.entered.append(client.name)
        self.most = max(self.most, self.inside)
        try:
            while True:
                order, result = await client.orders.get()
                value = await order(client)
                if not result.done():
                    result.set_result(value)
        except Returns:
            pass
        except asyncio.CancelledError:
            client.cancelled = True
            if client.held_at_the_end:
                await client.held_at_the_end.wait()
            raise
        finally:
            client.places.append(GONE)

    @property
    def inside(self):
        return sum(client.place == APP for client in self.clients.values())

    def come(self, names, path=PATH, messages=(BODY,), kind=http, **scope):
        """Requests, one after the other; the last one's Client. With `kind=websocket`, WebSockets."""
        if kind is http:
            scope.setdefault("method", "POST")
        for name in names:
            client = self.clients[name] = Client(self, name, kind(path, **scope))
            client.give(*messages).start()
        return client

    async def stand(self, when, runs="", waits="", refused="", gone="", refused_or_waits="", anyone=False):
        """Waits until those clients stand so, and then until nothing moves any more. With `anyone` it does
        not matter who of them stands where: in which order they are served is one test's concern."""
        expected = {name: (APP,) for name in runs} | {name: (WAITS,) for name in waits}
        expected |= {name: (REFUSED,) for name in refused} | {name: (GONE,) for name in gone}
        expected |= {name: (WAITS, REFUSED) for name in refused_or_waits}

        def others():
            got = {name: self.clients[name].place for name in expected}
            if anyone and sorted(got.values()) == sorted(places[0] for places in expected.values()):
                return {}
            return {name: place for name, place in got.items() if place not in expected[name]}

        await until(lambda: not others())
        await turns(TURNS)
        found = others()
        if found:
            got = {name: self.clients[name].place for name in expected}
            name = min(found)
            pair = [expected[name][0], found[name]]
            if sorted(got.values()) == sorted(places[0] for places in expected.values()):
                pair = ["order", "order"]
            self.told = {
                "when": f"Admission(app, {self.limits}); {when}",
                "pair": pair,
                "expected": said({name: " or ".join(expected[name]) for name in expected}),
                "got": said(got),
            }
            raise Otherwise

    def one_in_the_app(self):
        return next(client for client in self.clients.values() if client.place == APP)


def again(answer):
    """Runs the answer's module again: what Admissions share is to be found by one test only."""
    answer.__spec__.loader.exec_module(answer)


def said(places):
    """{"A": "in the app", "B": "in the app", "C": "waiting"} as "A, B in the app; C waiting"."""
    found = {}
    for name in sorted(places):
        found.setdefault(places[name], []).append(name)
    return "; ".join(f"{', '.join(names)} {place}" for place, names in found.items())


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


missed = []
"""What did not come to be, in this room."""


async def until(holds):
    """Waits until it holds, or too long; whether it does. Where things keep failing to happen, it waits less."""
    last, rounds = time.monotonic() + (LIMIT_S if len(missed) < 3 else 0.2), 0
    while not holds():
        if time.monotonic() > last:
            missed.append(holds)
            return False
        rounds += 1
        await asyncio.sleep(0 if rounds < TURNS else 0.001)  # most comes within a few rounds
    return True


# in the room: places


async def running_at_once(answer, inside):
    for max_running in (1, 3, 20):
        names = [f"{n:02}" for n in range(max_running)]
        async with Hall(answer, max_running, 5) as hall:
            hall.come(names)
            await hall.stand(f"{max_running} requests arrive at once", runs=names)
        if hall.told:
            return hall.told


async def too_many(answer, inside):
    async with Hall(answer, 2, 3) as hall:
        hall.come("ABCD")
        await hall.stand("A, B, C and D arrive at once", runs="AB", waits="CD", anyone=True)
        hall.come("E")
        await hall.stand("A, B, C and D arrive at once, and then E", runs="AB", waits="CDE", anyone=True)
    if hall.told:
        return hall.told
    async with Hall(answer, 1, 3) as hall:
        hall.come("A")
        await hall.stand("A arrives", runs="A")
        hall.come("B")
        await hall.stand("A arrives, and then B", runs="A", waits="B")
    return hall.told


async def next_goes_in(answer, inside):
    async with Hall(answer, 1, 3) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        hall.clients["A"].answer()
        await hall.stand("A and B arrive; A's answer ends", runs="B")
        hall.come("C")
        hall.clients["B"].answer()
        await hall.stand("later C arrives while B runs, and B's answer ends", runs="C")
        hall.clients["C"].answer()
        await hall.stand("all calls have ended", gone="C")
        hall.come("D")
        await hall.stand("all calls have ended, and D arrives", runs="D")
    return hall.told


async def handed_on(answer, inside):
    async with Hall(answer, 1, 1) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        for first, then, later in ("ABC", "BCD", "CDE"):
            hall.clients[first].answer()
            await hall.stand(f"{first} runs, {then} waits; {first}'s answer ends", runs=then)
            hall.come(later)
            await hall.stand(f"{first} has ended, {then}'s turn has come, and {later} arrives", runs=then, waits=later)
    return hall.told


async def too_many_waiting(answer, inside):
    async with Hall(answer, 2, 3) as hall:
        hall.come("ABCDE")
        await hall.stand("five requests arrive at once", runs="AB", waits="CDE")
        hall.come("FG")
        await hall.stand("five requests arrive at once, then F and G", runs="AB", waits="CDE", refused="FG")
        hall.clients["A"].answer()
        await hall.stand("A's answer ends", runs="BC", waits="DE", refused="FG", anyone=True)
        hall.come("HI")
        await hall.stand("A's answer ends, then H and I arrive", runs="BC", waits="DEH", refused="I", anyone=True)
    if hall.told:
        return hall.told
    async with Hall(answer, 1, 2) as hall:
        hall.come("ABCD")
        await hall.stand("four requests arrive at once", runs="A", waits="BC", refused="D")
    return hall.told


async def nobody_may_wait(answer, inside):
    async with Hall(answer, 2, 0) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="AB")
        hall.come("C")
        await hall.stand("A and B arrive, then C", runs="AB", refused="C")
        hall.clients["B"].answer()
        await hall.stand("B's answer ends", runs="A", gone="B")
        hall.come("D")
        await hall.stand("B's answer ends, and D arrives", runs="AD")
    return hall.told


async def refused_again_and_again(answer, inside):
    """What is left of refusals."""
    async with Hall(answer, 1, 1) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        hall.come("CDEFGH")
        await hall.stand("A and B arrive, then six more requests", runs="A", waits="B", refused="CDEFGH")
        hall.clients["A"].answer()
        await hall.stand("A's answer ends", runs="B", refused="CDEFGH")
        hall.come("I")
        await hall.stand("A's answer ends, and I arrives", runs="B", waits="I", refused="CDEFGH")
        hall.clients["B"].answer()
        await hall.stand("A's and B's answers end", runs="I")
        hall.clients["I"].answer()
        await hall.stand("all calls have ended", gone="I")
        hall.come("JKL")
        await hall.stand("all calls have ended; J, K and L arrive", runs="J", waits="K", refused="L")
    return hall.told


async def in_order(answer, inside):
    """{"came", "entered"}: the order of waiting requests, and that in which they have reached the app."""
    async with Hall(answer, 1, 6) as hall:
        hall.come("A")
        await hall.stand("A arrives", runs="A")
        await turns(TURNS)
        hall.come("B", messages=())
        hall.come("C")
        await turns(TURNS)
        hall.come("D", messages=[{**BODY, "more_body": True}])
        hall.come("EF")
        await turns(TURNS)
        hall.come("G")
        await turns(TURNS)
        hall.clients["A"].answer()
        await turns(TURNS)
        hall.clients["B"].give(BODY)
        hall.clients["D"].give(BODY)
        for number in range(1, 7):
            await until(lambda number=number: len(hall.entered) > number)
            if len(hall.entered) > number:
                hall.clients[hall.entered[number]].answer()
    return hall.told or {"came": "ABCDEFG", "entered": "".join(hall.entered), "most": hall.most}


async def in_order_without_one(answer, inside):
    """As `in_order`, where C leaves while it waits."""
    async with Hall(answer, 1, 5) as hall:
        hall.come("ABCDEF")
        await hall.stand("six requests arrive at once", runs="A", waits="BCDEF")
        hall.clients["C"].leave()
        await turns(TURNS)
        for number in range(1, 5):
            if not hall.inside:
                break
            hall.one_in_the_app().answer()
            await until(lambda number=number: len(hall.entered) > number and hall.inside)
    return hall.told or {"came": "ABDEF", "entered": "".join(hall.entered)}


async def newcomers(answer, inside):
    """A place becomes free, and some turns of the event loop later somebody comes."""
    for count in EACH_TURN:
        async with Hall(answer, 1, 2) as hall:
            hall.come("AB")
            await hall.stand("A runs, B waits", runs="A", waits="B")
            hall.clients["A"].answer()
            await turns(count)
            hall.come("N")
            await hall.stand("B waits; just as A's place becomes free, N arrives", runs="B", refused_or_waits="N")
        if hall.told:
            return hall.told
        async with Hall(answer, 2, 3) as hall:
            hall.come("ABCD")
            await hall.stand("A and B run, C and D wait", runs="AB", waits="CD")
            hall.clients["A"].end()
            hall.clients["B"].answer()
            await turns(count)
            hall.come("N")
            when = "C and D wait; just as A's and B's places become free, N arrives"
            await hall.stand(when, runs="CD", refused_or_waits="N")
        if hall.told:
            return hall.told
    async with Hall(answer, 1, 2) as hall:

        async def another_comes(client):
            hall.come("N")
            raise Returns

        hall.come("AB")
        await hall.stand("A runs, B waits", runs="A", waits="B")
        hall.clients["A"].do(another_comes)
        await turns(2)
        await hall.stand("B waits; just as A's place becomes free, N arrives", runs="B", refused_or_waits="N")
    return hall.told


async def patience(answer, inside):
    """An hour passes."""
    loop = asyncio.get_running_loop()
    real, later = loop.time, [0.0]
    loop.time = lambda: real() + later[0]
    async with Hall(answer, 1, 1) as hall:
        hall.come("AB")
        await hall.stand("A runs, B waits", runs="A", waits="B")
        for _ in range(3):
            later[0] += HOUR_S
            await asyncio.sleep(0.01)
            await hall.stand("A runs, B waits; hours pass", runs="A", waits="B")
        hall.clients["A"].answer()
        await hall.stand("A runs, B waits; hours pass, and A's answer ends", runs="B")
    loop.time = real
    return hall.told


# in the room: refusals


async def refusals(answer, inside):
    """The responses to requests that are refused: [how it came about, what it was] for each."""
    found = []
    for limits, more in (
        ((1, 1), {}),
        ((1, 2), {}),
        ((1, 1), {"retry_after_s": 7}),
        ((1, 1), {"retry_after_s": 120}),
        ((1, 1), {"retry_after_s": 0}),
    ):
        async with Hall(answer, *limits, **more) as hall:
            names = "ABC"[: 1 + limits[1]]
            hall.come(names)
            await hall.stand(f"{len(names)} requests arrive", runs="A", waits=names[1:])
            client = hall.come("Z")
            await until(lambda client=client: client._task.done() or client.places)
            await turns(TURNS)
            seen = refusal(client)
            for name in names:
                await turns(TURNS)
                hall.clients[name].answer()
            await turns(TURNS)
            seen["entered later"] = "Z" in hall.entered[1:]
        if hall.told:
            return {"told": hall.told}
        found.append([f"Admission(app, {hall.limits}); one request too many", seen, more.get("retry_after_s", 1)])
    return {"refusals": found}


def refusal(client):
    """What a client who was not let in has got."""
    start = next((m for m in client.messages if m["type"] == "http.response.start"), {})
    pairs = start.get("headers", ())
    return {
        "status": client.status,
        "headers": [list(pair) for pair in client.headers],
        "as bytes": all(isinstance(part, bytes) for pair in pairs for part in pair),
        "body": client.body.decode("utf-8", "replace"),
        "types": [message["type"] for message in client.messages],
        "whole": bool(client.messages) and not client.messages[-1].get("more_body", False),
        "entered": bool(client.places),
        "ended": client._task.done(),
        "error": client.error,
    }


async def without_a_body(answer, inside):
    async with Hall(answer, 1, 1) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        hall.come("C", messages=())
        await hall.stand("A and B arrive, then C, whose body does not arrive", runs="A", waits="B", refused="C")
        hall.come("D", messages=[{**BODY, "more_body": True}])
        await hall.stand("A and B arrive, then D, whose body stops half-way", runs="A", waits="B", refused="D")
        for name in "CD":
            client = hall.clients[name]
            await until(client._task.done)
            if not client._task.done():
                hall.told = {"pair": ["", ""], "when": "one request too many, whose body does not arrive"}
                hall.told |= {"expected": "its call ends", "got": f"{client.status}, and its call keeps running"}
    return hall.told


async def while_the_clock_stands(answer, inside):
    """One request too many, while no timer of the event loop runs out: what has become of it."""
    loop = asyncio.get_running_loop()
    async with Hall(answer, 1, 1) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        real, now = loop.time, loop.time()
        loop.time = lambda: now
        try:
            client = hall.come("C")
            await turns(10 * TURNS)
            place = client.place
        finally:
            loop.time = real
    return {"told": hall.told, "place": None if hall.told else place}


# in the room: how a place is given back


async def fails(client):
    raise Own("no bread")


async def fails_in_a_stream(client):
    await client.send(START)
    await client.send({**LAST, "more_body": True})
    raise Own("no bread")


async def fails_like_a_cancellation(client):
    raise asyncio.CancelledError("no bread")


async def is_cancelled(client):
    Exchange.cancel(client)
    await asyncio.sleep(0)


async def is_cancelled_in_a_stream(client):
    await client.send(START)
    await client.send({**LAST, "more_body": True})
    await is_cancelled(client)


async def is_left_and_returns(client):
    client.give(DISCONNECT)
    while (await client.receive())["type"] != "http.disconnect":
        pass
    raise Returns


ENDS = {
    "sends an answer and ends": answers_and_returns,
    "returns without sending anything": returns,
    "raises": fails,
    "raises mid-answer": fails_in_a_stream,
    "is cancelled": is_cancelled,
    "is cancelled mid-answer": is_cancelled_in_a_stream,
    "raises a CancelledError": fails_like_a_cancellation,
    "ends after its client has left": is_left_and_returns,
}
"""How the app's call may end."""


async def endings(answer, inside, how):
    """The app's calls for A, B and C, one let in after the other, end so."""
    for max_running in (1, 2):
        async with Hall(answer, max_running, 3) as hall:
            others = "XY"[: max_running - 1]
            hall.come("A" + others)
            await hall.stand("A arrives", runs="A" + others)
            hall.clients["A"].do(ENDS[how])
            await hall.stand(f"A's call {how}", gone="A", runs=others)
            hall.come("BC")
            await hall.stand(f"A's call {how}; B and C arrive", runs="B" + others, waits="C")
            hall.clients["B"].do(ENDS[how])
            await hall.stand(f"B's call {how} while C waits", runs="C" + others)
            hall.come("D")
            hall.clients["C"].do(ENDS[how])
            await hall.stand(f"C's call {how} while D waits", runs="D" + others)
        if hall.told:
            return hall.told


async def given_back_once(answer, inside):
    """However a call ends, one goes in for it."""
    for how, end in ENDS.items():
        async with Hall(answer, 1, 3) as hall:
            hall.come("ABCD")
            await hall.stand("A, B, C and D arrive", runs="A", waits="BCD")
            hall.clients["A"].do(end)
            await until(lambda hall=hall: hall.clients["A"].place != APP)
            await turns(TURNS)
            if hall.inside > 1:
                await hall.stand(f"A's call {how} while B, C and D wait", runs="B", waits="CD", anyone=True)
            if hall.inside:
                hall.clients[hall.entered[-1]].do(end)
                await turns(TURNS)
            if hall.inside > 1:
                when = f"A's call {how} while B, C and D wait; then the next call to the app ends in the same way"
                await hall.stand(when, runs="C", waits="BD", anyone=True)
        if hall.told:
            return hall.told
        async with Hall(answer, 1, 3) as hall:
            hall.come("A")
            await hall.stand("A arrives", runs="A")
            hall.clients["A"].do(end)
            await until(lambda hall=hall: hall.clients["A"].place != APP)
            hall.come("BCD")
            await turns(TURNS)
            if hall.inside > 1:
                await hall.stand(f"A's call {how}; then B, C and D arrive", runs="B", waits="CD")
        if hall.told:
            return hall.told


async def after_the_last_piece(answer, inside):
    async def sends_all(client):
        await client.send(START)
        await client.send({**LAST, "more_body": True})
        await client.send(LAST)

    async with Hall(answer, 1, 2) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        hall.clients["A"].do(sends_all)
        await until(lambda: len(hall.clients["A"].messages) == 3)
        await hall.stand("the app has sent A's last piece and keeps working", runs="A", waits="B")
        hall.clients["A"].end()
        await hall.stand("the app has sent A's last piece, and then ends", runs="B")
        hall.clients["B"].do(sends_all)
        await until(lambda: len(hall.clients["B"].messages) == 3)
        hall.come("C")
        await hall.stand("the app has sent B's last piece and keeps working; C arrives", runs="B", waits="C")
    return hall.told


async def after_leaving(answer, inside):
    """The clients of requests in the app leave: one that was admitted at once, one that had waited."""

    async def hears(client):
        while (await client.receive())["type"] != "http.disconnect":
            pass

    async with Hall(answer, 1, 2) as hall:
        hall.come("AB")
        await hall.stand("A and B arrive", runs="A", waits="B")
        hall.clients["A"].give(DISCONNECT)
        await hall.stand("A's client leaves; the app keeps working", runs="A", waits="B")
        hall.clients["A"].do(hears)
        await hall.stand("A's client leaves; the app has been told and keeps working", runs="A", waits="B")
        hall.clients["A"].end()
        await hall.stand("A's client leaves; then its call ends", runs="B")
        hall.come("C")
        hall.clients["B"].give(DISCONNECT)
        await hall.stand("B's client leaves; the app keeps working", runs="B", waits="C")
        hall.clients["B"].do(hears)
        await hall.stand("B's client leaves; the app has been told and keeps working", runs="B", waits="C")
    return hall.told


async def cleaning_up(answer, inside):
    """A call to the app that is cancelled, and does something in the end."""
    async with Hall(answer, 1, 2) as hall:
        a = hall.come("A")
        hall.come("B")
        a.held_at_the_end = asyncio.Event()
        await hall.stand("A and B arrive", runs="A", waits="B")
        Exchange.cancel(a)
        await until(lambda: a.cancelled)
        if not a.cancelled:
            hall.told = {"pair": ["", "not cancelled"], "when": "the server cancels a request in the app"}
            hall.told |= {"expected": "the app's call is cancelled", "got": "the app's call goes on"}
            return hall.told
        await hall.stand("A's call is cancelled, and the app's `finally` takes its time", runs="A", waits="B")
        a.held_at_the_end.set()
        await hall.stand("A's call is cancelled; the app's `finally` has ended", runs="B")
    return hall.told


async def never_cancelled(answer, inside):
    """{what has happened: whether the app's call was cancelled or ended}."""
    found = {}

    async def streams(client):
        await client.send(START)
        await client.send({**LAST, "more_body": True})

    for had_waited in (False, True):
        for order in (None, streams):
            async with Hall(answer, 1, 2) as hall:
                client = hall.come("A")
                await hall.stand("A arrives", runs="A")
                if had_waited:
                    client = hall.come("B")
                    await hall.stand("B arrives", waits="B")
                    hall.clients["A"].answer()
                    await hall.stand("A's answer ends", runs="B")
                if order:
                    client.do(order)
                    await until(lambda client=client: len(client.messages) == 2)
                client.give(DISCONNECT)
                await turns(TURNS)
                await asyncio.sleep(0.02)
                case = "a request that had waited" if had_waited else "a request"
                case += f" is running, and its client leaves{' mid-answer' if order else ''}"
                found[case] = client.cancelled or client.place != APP
            if hall.told:
                return {"told": hall.told}
    return {"cancelled": found}


# in the room: those who leave while they wait


async def leaving(answer, inside, how):
    """Two of those who wait leave, or their calls are cancelled."""
    async with Hall(answer, 1, 3) as hall:
        hall.come("A")
        hall.come("B", messages=parts(b"half"))
        hall.come("C")
        hall.come("D", messages=())
        await hall.stand("A runs; B, C and D wait", runs="A", waits="BCD")
        getattr(hall.clients["B"], how)()
        await turns(TURNS)
        getattr(hall.clients["D"], how)()
        await turns(TURNS)
        hall.clients["A"].answer()
        for number in (2, 3):
            if number == 2:
                await until(lambda: len(hall.entered) > 1)
            await turns(TURNS)
            for client in hall.clients.values():
                if client.place == APP:
                    client.answer()
    return hall.told or "".join(hall.entered[1:])


async def leaving_makes_room(answer, inside, how):
    """Whether others can wait in the place of one who has left."""
    for first in ("B", "C"):
        async with Hall(answer, 1, 2) as hall:
            hall.come("ABC")
            await hall.stand("A runs; B and C wait", runs="A", waits="BC")
            getattr(hall.clients[first], how)()
            await turns(TURNS)
            await asyncio.sleep(0.03)
            hall.come("DE")
            other = "BC".replace(first, "")
            what = "client leaves" if how == "leave" else "call is cancelled"
            when = f"A runs; B and C wait; {first}'s {what}; D and E arrive"
            await hall.stand(when, runs="A", waits=other + "D", refused="E")
            hall.clients["A"].answer()
            await hall.stand(f"{when}; A's answer ends", runs=other, waits="D", anyone=True)
            hall.one_in_the_app().answer()
            await hall.stand(f"{when}; A's answer ends, and then the next one", runs="D", gone=other, anyone=True)
        if hall.told:
            return hall.told


async def place_not_lost(answer, inside, how):
    """B leaves about when its turn comes; C waits behind it."""
    for count in range(-6, 12):
        for leaver, other in ("BC", "CB"):
            async with Hall(answer, 1, 2) as hall:
                hall.come("ABC")
                await hall.stand("A runs; B and C wait", runs="A", waits="BC")
                b = hall.clients[leaver]
                if count >= 0:
                    hall.clients["A"].answer()
                    await turns(count)
                getattr(b, how)()
                if count < 0:
                    await turns(-count)
                    hall.clients["A"].answer()
                what = f"{leaver}'s client leaves" if how == "leave" else f"{leaver}'s call is cancelled"
                when = f"A runs; B and C wait; just as A's answer ends, {what}"
                ended = False

                def the_other_is_in(hall=hall, b=b, other=other):
                    nonlocal ended
                    if b.place == APP and not ended:
                        ended = True
                        b.end()
                    return hall.clients[other].place == APP

                await until(the_other_is_in)
                await hall.stand(when, runs=other)
                hall.come("DE")
                await hall.stand(f"{when}; D and E arrive", runs=other, waits="DE")
                hall.clients[other].answer()
                await hall.stand(f"{when}; D and E arrive; {other}'s answer ends", runs="D", waits="E", anyone=True)
            if hall.told:
                return hall.told
        # nobody waits behind it
        async with Hall(answer, 1, 1) as hall:
            hall.come("AB")
            await hall.stand("A runs; B waits", runs="A", waits="B")
            b = hall.clients["B"]
            if count >= 0:
                hall.clients["A"].answer()
                await turns(count)
            getattr(b, how)()
            if count < 0:
                await turns(-count)
                hall.clients["A"].answer()
            await turns(TURNS)
            await asyncio.sleep(0.002)
            if b.place == APP:
                b.end()
                await turns(TURNS)
            hall.come("CDE")
            what = "B's client leaves" if how == "leave" else "B's call is cancelled"
            when = f"A runs; B waits; just as A's answer ends, {what}; later C, D and E arrive"
            await hall.stand(when, runs="C", waits="D", refused="E")
        if hall.told:
            return hall.told


async def leaving_before_the_body_is_here(answer, inside, how):
    """One whose turn has come leaves while its body arrives; the app may have been called by then, or not."""
    for had_waited in (False, True):
        async with Hall(answer, 1, 1) as hall:
            if had_waited:
                hall.come("A")
                await hall.stand("A arrives", runs="A")
            b = hall.come("B", messages=parts(b"half"))
            await turns(TURNS)
            if had_waited:
                hall.clients["A"].answer()
                await turns(TURNS)
            getattr(b, how)()
            await until(lambda b=b: b._task.done() or b.place == APP)
            if b.place == APP:
                b.end()
                await until(b._task.done)
            hall.come("CDE")
            what = f"{'A runs, B waits, A ends' if had_waited else 'B arrives'}; half of B's body has arrived, and"
            what += " its client leaves" if how == "leave" else " its call is cancelled"
            await hall.stand(f"{what}; later C, D and E arrive", runs="C", waits="D", refused="E")
        if hall.told:
            return hall.told


async def all_leave(answer, inside, how):
    """All who wait leave in one moment, and the place becomes free in the same."""
    async with Hall(answer, 2, 4) as hall:
        hall.come("ABCDEF")
        await hall.stand("A and B run; C to F wait", runs="AB", waits="CDEF")
        for name in "CDEF":
            getattr(hall.clients[name], how)()
        hall.clients["A"].end()
        hall.clients["B"].end()
        for _ in range(8):
            await turns(TURNS)
            for name in "CDEF":
                if hall.clients[name].place == APP:
                    hall.clients[name].end()
        hall.come("GHIJKLM")
        what = "clients leave" if how == "leave" else "calls are cancelled"
        when = f"A and B run; C to F wait; just as A and B end, the others' {what}; later G to M arrive"
        await hall.stand(when, runs="GH", waits="IJKL", refused="M")
    return hall.told


# in the room: what a client sends


def parts(*bodies, more=True):
    """A body's messages; `more` says whether others follow."""
    made = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    if not more:
        made[-1]["more_body"] = False
    return made


BODIES = {
    "a body in one part": [parts(b"whole", more=False), [], []],
    "a body in three parts": [parts(b"one,", b"two,", b"three", more=False), [], []],
    "a body whose parts arrive one by one while the request waits": [
        parts(b"one,"),
        parts(b"two,"),
        parts(b"three", more=False),
    ],
    "a body that begins while the request waits and ends later": [
        parts(b"one,", b"two,"),
        [],
        [],
        parts(b"3", more=False),
    ],
    "a body whose first part arrives late": [[], parts(b"one,"), [], parts(b"two,", b"three", more=False)],
    "a body that arrives only after the request has entered the app": [[], [], [], parts(b"one,", b"two", more=False)],
    "an empty body": [parts(b"", more=False), [], []],
    "a body with empty parts": [parts(b"", b"one,"), parts(b"", b"two", b"", more=False), []],
    "a body of half a megabyte": [parts(*[b"%05d" % n * 1600 for n in range(60)], b"end", more=False), [], []],
}
"""What comes at once, then, and then while the request waits; and what comes once it runs."""


async def reads_the_body(client):
    """The body as far as the app hears of it."""
    body = b""
    while True:
        message = await client.receive()
        if message["type"] != "http.request":
            return body + b" - and then " + message["type"].encode()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


async def bodies(answer, inside):
    """[what was sent, the body, the body that the app has got] for each case; and whether it had to wait."""
    found = []
    for case, (at_once, then, after, *later) in BODIES.items():
        async with Hall(answer, 1, 2) as hall:
            hall.come("A")
            await hall.stand("A arrives", runs="A")
            b = hall.come("B", messages=at_once)
            for more in (then, after):
                await turns(TURNS)
                b.give(*more)
            await hall.stand(f"A runs; B arrives with {case}", runs="A", waits="B")
            hall.clients["A"].answer()
            await turns(TURNS)
            heard = b.do(reads_the_body)
            await turns(TURNS)
            for messages in later:
                for message in messages:
                    b.give(message)
                    await turns(3)
            await until(heard.done)
            sent = b"".join(m["body"] for m in [*at_once, *then, *after, *sum(later, [])])
            got = heard.result() if heard.done() else b"nothing: the app waits for more"
            found.append([case, short(sent), short(got), got == sent])
        if hall.told:
            return {"told": hall.told}
        if got != sent:
            break
    return {"bodies": found}


def short(body):
    text = body.decode("latin-1")
    return text if len(text) < 80 else f"{text[:20]} ... {text[-20:]} ({len(text)} bytes)"


async def hearing(answer, inside):
    """What the app hears from `receive` when its client stays, and when it leaves: {case: [before, after]}."""
    found = {}

    async def asks_and_gives_up(client):
        """Asks for the next message, as Starlette does beside a stream, and stops asking: what it heard."""
        asking = asyncio.ensure_future(client.receive())
        await asyncio.wait([asking], timeout=0.02)
        await turns(TURNS)
        if asking.done():
            return asking.result()["type"]
        asking.cancel()
        await asyncio.wait([asking])
        return None

    async def listens(client):
        for _ in range(5):
            message = await client.receive()
            if message["type"] == "http.disconnect":
                return "http.disconnect"
        return "other messages, again and again"

    for case, had_waited, asks_before in (
        ("a request that was admitted at once", False, True),
        ("a request that had waited", True, False),
        ("a request that had waited, and whose app had already called receive", True, True),
        ("a request that had waited, and whose app calls receive only after the client has left", True, None),
    ):
        async with Hall(answer, 1, 2) as hall:
            client = hall.come("A")
            await hall.stand("A arrives", runs="A")
            if had_waited:
                client = hall.come("B")
                await hall.stand("B arrives", waits="B")
                hall.clients["A"].answer()
                await hall.stand("A's answer ends", runs="B")
            client.do(reads_the_body)
            before = None
            if asks_before:
                asked = client.do(asks_and_gives_up)
                await until(asked.done)
                before = asked.result() if asked.done() else "(receive does not return)"
            if asks_before is None:
                client.give(DISCONNECT)
                await turns(TURNS)
                heard = client.do(listens)
            else:
                heard = client.do(listens)
                await turns(TURNS)
                if heard.done() and not before:
                    before = heard.result()
                client.give(DISCONNECT)
            await until(heard.done)
            found[case] = [before, heard.result() if heard.done() else None]
        if hall.told:
            return {"told": hall.told}
    return {"heard": found}


# in the room: what passes


async def other_paths(answer, inside):
    """Requests for other paths, and to the path by other names."""
    async with Hall(answer, 1, 1) as hall:
        hall.come("G", path="/health", method="GET")
        hall.come("H", path="/v1/models", method="GET")
        await hall.stand("G (GET /health) and H (GET /v1/models) arrive", runs="GH")
        hall.come("AW")
        await hall.stand("G and H, for other paths, run; A and W arrive", runs="AGH", waits="W")
        hall.come("BC", path="/metrics", method="GET")
        hall.come("D", path="/", method="GET")
        hall.come("E", path="/chat")
        when = "A runs, W waits; B, C (GET /metrics), D (GET /) and E (POST /chat) arrive"
        await hall.stand(when, runs="ABCDEGH", waits="W")
        for name in "BCDEGH":
            hall.clients[name].answer()
        await hall.stand("the requests for other paths have ended; A runs, W waits", runs="A", waits="W", gone="BCDEGH")
        hall.come("F")
        when = "the requests for other paths have ended; A runs, W waits, and F arrives"
        await hall.stand(when, runs="A", waits="W", refused="F")
    return hall.told


async def sockets(answer, inside):
    """WebSockets to the path take no place, and free none."""
    async with Hall(answer, 1, 1) as hall:
        hall.come("V", kind=websocket)
        await hall.stand("V, a WebSocket, is open", runs="V")
        hall.come("AW")
        await hall.stand("V, a WebSocket, is open; A and W arrive", runs="AV", waits="W")
        hall.clients["V"].end()
        await hall.stand("A runs and W waits; V, a WebSocket, ends", runs="A", waits="W", gone="V")
    return hall.told


RECEIVED = {
    "http": parts(b"one", b"two", more=False),
    "websocket": [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "hi"},
        {"type": "websocket.disconnect", "code": 1000},
    ],
    "lifespan": [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}],
}
SCOPES = {
    "a request": http(PATH, method="POST"),
    "a request for another path": http("/health", method="POST"),
    "a WebSocket": websocket(PATH),
    "the server's start-up and shutdown (lifespan)": {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}},
}


async def passing(answer, inside):
    """{case: {"expected", "got"}} of what does not pass unchanged: with places free, after a wait, and when
    all places are taken."""
    found = {}
    for name, scope in SCOPES.items():
        for state in ("", "after a wait") if name == "a request" else ("", "while all places are taken"):
            problem = await one_passing(answer, scope, state)
            if problem:
                found[f"{name} {state}".strip()] = problem
    return found


async def one_passing(answer, scope, state):
    kind, received, scopes, calls = scope["type"], [], [], []
    free = asyncio.Event()

    async def app(scope, receive, send):
        calls.append(scope["type"])
        if scope.get("client") == BEFORE:
            await free.wait()
            return
        scopes.append(dict(scope))
        while received[-1:] != RECEIVED[kind][-1:] and len(received) < 9:
            received.append(await receive())
        for message in SENT[kind]:
            await send(dict(message))

    again(answer)
    around = answer.Admission(app, max_running=1, max_waiting=1)
    if state:
        first = Exchange(around, {**http(PATH, method="POST"), "client": BEFORE}).give(BODY).start()
        await until(lambda: calls)
        if state != "after a wait":
            Exchange(around, {**http(PATH, method="POST"), "client": BEFORE}).give(BODY).start()
            await turns(TURNS)
    *before, last = RECEIVED[kind]
    exchange = Exchange(around, dict(scope)).give(*before).start()
    if state == "after a wait":
        await turns(TURNS)
        free.set()
    exchange.give(last)
    await until(exchange._task.done)
    if state != "after a wait":
        free.set()
        if state:
            await until(first._task.done)
    if not exchange._task.done():
        # whether a place becomes free is another test's concern
        return None if state == "after a wait" else {"got": "it waits for a place" if state else "it never ends"}
    try:
        await exchange.ended()
    except Exception as error:  # noqa: BLE001
        if answers.raised_by_stub(error):
            raise
        return {"got": f"{type(error).__name__}: {error}"}
    if not scopes:
        refused = [each["status"] for each in exchange.messages if each["type"].endswith("http.response.start")]
        if refused:
            return {"got": f"it is refused with {refused[0]}, and does not reach the app"}
        return {"got": f"it does not reach the app: {exchange.messages or 'nothing is sent'}"}
    if kind != "http" or scope["path"] != PATH:
        if scopes[0] != scope:
            return {"expected": f"scope: {scope}", "got": f"scope: {scopes[0]}"}
    # what is sent while a request waits is another test's concern
    if state != "after a wait" and received != RECEIVED[kind]:
        return {"expected": f"received: {RECEIVED[kind]}", "got": f"received: {received}"}
    got, expected = [full(each) for each in exchange.messages], [full(each) for each in SENT[kind]]
    if got != expected:
        return {"expected": f"sent: {first_other(expected, got)}", "got": f"sent: {first_other(got, expected)}"}
    return None


def full(message):
    """A message as it is compared: header names in lower case, what may be left out there."""
    message = dict(message)
    if message["type"] == "http.response.start":
        message["headers"] = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers") or ()]
    if message["type"] == "http.response.body":
        message = {"body": b"", "more_body": False} | message
    return message


def first_other(these, others):
    for index, each in enumerate(these):
        if index >= len(others) or each != others[index]:
            return str(each)
    return "nothing more"


async def pieces(answer, inside):
    """{case: how many of the start and three pieces have come out, each while the app waits}."""
    found = {}

    async def sends(message, client):
        await client.send(message)

    for had_waited in (False, True):
        async with Hall(answer, 1, 2) as hall:
            client = hall.come("A")
            await hall.stand("A arrives", runs="A")
            if had_waited:
                client = hall.come("B")
                await hall.stand("B arrives", waits="B")
                hall.clients["A"].answer()
                await hall.stand("A's answer ends", runs="B")
            client.do(functools.partial(sends, START))
            await until(lambda client=client: client.status == START["status"])
            here = int(client.status == START["status"])
            for number in range(3 * here):
                piece = {"type": "http.response.body", "body": b"%d" % number, "more_body": True}
                client.do(functools.partial(sends, piece))
                await until(lambda client=client, number=number: client.body == b"012"[: number + 1])
                here += client.body == b"012"[: number + 1]
                if here <= number + 1:
                    break
            found["a request that had waited" if had_waited else "a request that was admitted at once"] = here
        if hall.told:
            return {"told": hall.told}
    return {"here": found}


async def errors(answer, inside):
    """{case: what reaches the server when the app raises}."""
    found = {}

    async def raises(scope, receive, send):
        raise Own("no bread")

    async def breaks(client):
        raise ConnectionResetError("no bread")

    async def gives_up(client):
        raise RuntimeError("no bread")

    for case, scope in (
        ("an error for a request to another path", http("/health")),
        ("an error for a WebSocket", websocket(PATH)),
    ):
        exchange = Exchange(answer.Admission(raises, max_running=1, max_waiting=1), scope).give(BODY).start()
        found[case] = await raised(exchange)
    kinds = {fails_like_a_cancellation: "CancelledError", breaks: "ConnectionResetError", gives_up: "RuntimeError"}
    for had_waited in (False, True):
        for order in (fails, fails_in_a_stream, *kinds):
            async with Hall(answer, 1, 2) as hall:
                client = hall.come("A")
                await hall.stand("A arrives", runs="A")
                if had_waited:
                    client = hall.come("B")
                    await hall.stand("B arrives", waits="B")
                    hall.clients["A"].answer()
                    await hall.stand("A's answer ends", runs="B")
                client.do(order)
                case = f"a {kinds[order]}" if order in kinds else "an error"
                case += " mid-answer" if order is fails_in_a_stream else " before its response"
                case += ", for a request that had waited" if had_waited else ""
                found[case] = await raised(client)
                if order is not fails_in_a_stream and client.messages:
                    found[case] = f"a response is sent: {client.status}"
            if hall.told:
                return {"told": hall.told}
    return {"errors": found}


async def raised(exchange):
    await until(exchange._task.done)
    if not exchange._task.done():
        return "the call does not end"
    try:
        await exchange.ended()
    except BaseException as error:  # noqa: BLE001
        if answers.raised_by_stub(error):
            raise
        return f"{type(error).__name__}: {error}"
    return "nothing is raised"


# in the room: counts, and what is asked for by name


async def counts(answer, inside):
    """[what has happened, [running, waiting] as they have to be, and as they are]."""
    found = []

    async def note(when, running, waiting):
        def now():
            return [inside.plain(getattr(hall.admission, name, "missing")) for name in ("running", "waiting")]

        await until(lambda: now() == [running, waiting])
        await turns(TURNS)
        found.append([when, [running, waiting], now()])
        if now() != [running, waiting]:
            raise Otherwise

    async with Hall(answer, 2, 2) as hall:
        await note("before any request arrives", 0, 0)
        hall.come("A")
        await note("A arrives", 1, 0)
        hall.come("BC")
        await note("B and C arrive", 2, 1)
        hall.come("D")
        hall.come("EF")
        await note("D arrives; E and F are refused", 2, 2)
        hall.come("H", path="/health", method="GET")
        await note("H, a request for another path, arrives", 2, 2)
        hall.clients["C"].leave()
        await note("C's client leaves while it waits", 2, 1)
        hall.clients["A"].answer()
        await note("A's answer ends, and D enters the app", 2, 0)
        hall.come("IJ")
        await note("I and J arrive", 2, 2)
        hall.clients["J"].cancel()
        await note("J's call is cancelled while it waits", 2, 1)
        hall.clients["B"].do(fails)
        await note("the app raises an error for B, and I enters the app", 2, 0)
        hall.clients["I"].give(DISCONNECT)
        await note("I's client leaves; the app keeps working", 2, 0)
        Exchange.cancel(hall.clients["I"])
        await note("I's call is cancelled", 1, 0)
        hall.clients["D"].end()
        hall.clients["H"].answer()
        await note("all calls have ended", 0, 0)
    return found


async def two_of_them(answer, inside):
    """Two Admissions in one process."""
    async with Hall(answer, 1, 1) as one, Hall(answer, 1, 1, beside_others=True) as other:
        for hall in (one, other):
            hall.come("AB")
            await hall.stand("another Admission is full; A and B arrive", runs="A", waits="B")
            hall.come("C")
            await hall.stand("another Admission is full; A, B and C arrive", runs="A", waits="B", refused="C")
        one.clients["A"].answer()
        await one.stand("A's answer ends", runs="B")
        await other.stand("an answer of another Admission ends", runs="A", waits="B")
        one.clients["B"].answer()
        await one.stand("B's answer ends", gone="B")
        await other.stand("all of another Admission's answers end", runs="A", waits="B")
        one.come("D")
        await one.stand("D arrives while another Admission is full", runs="D")
    if one.told or other.told:
        return one.told or other.told
    async with Hall(answer, 3, 0) as one, Hall(answer, 1, 0, beside_others=True) as other:
        one.come("ABC")
        other.come("A")
        await one.stand("another Admission has other limits; A, B and C arrive", runs="ABC")
        await other.stand("another Admission has other limits", runs="A")
    return one.told or other.told


async def methods(answer, inside):
    for method in ("POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS"):
        for first, then in ((method, method), (method, "POST"), ("POST", method)):
            async with Hall(answer, 1, 1) as hall:
                hall.come("A", method=first)
                await hall.stand(f"A arrives, a {first} request", runs="A")
                hall.come("B", method=first)
                await hall.stand(f"A runs; B arrives, a {first} request", runs="A", waits="B")
                hall.come("C", method=then)
                await hall.stand(
                    f"A runs and B waits, both of them {first} requests; C arrives, a {then} request",
                    waits="B",
                    refused="C",
                )
            if hall.told:
                return hall.told


async def paths(answer, inside):
    async with Hall(answer, 1, 1, path="/chat") as hall:
        hall.come("ABC", path="/chat")
        await hall.stand("A, B and C request /chat", runs="A", waits="B", refused="C")
        hall.come("DE")
        await hall.stand(f"A, B and C request /chat, D and E request {PATH}", runs="ADE", waits="B", refused="C")
    if hall.told:
        return hall.told
    async with Hall(answer, 1, 1) as hall:
        hall.come("A", headers=[(b"content-length", b"22")])
        hall.come("BC")
        await hall.stand(f"A, B and C request {PATH}", runs="A", waits="B", refused="C")
        hall.come("DE", path="/chat")
        await hall.stand(f"A, B and C request {PATH}, D and E request /chat", runs="ADE", waits="B", refused="C")
    return hall.told


# in the room: behind a server


def served(answer, inside):
    """A FastAPI app that echoes a prompt in two pieces, the second when the test allows it."""
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    app.add_middleware(answer.Admission, max_running=1, max_waiting=2)
    inside.notes["entered"] = []

    @app.post(PATH)
    async def chat(request: Request):
        prompt = (await request.json())["prompt"]
        name = prompt[0]
        inside.notes["entered"] = [*inside.notes["entered"], name]

        async def pieces():
            yield f"data: {name}\n\n"
            while not inside.event(name).is_set():
                await asyncio.sleep(0.005)
            yield f"data: {len(prompt)}\n\n"

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    return app


# outside

SENTENCES = {
    (APP, WAITS): "a request waits although a place is free",
    (APP, REFUSED): "a request is refused although a place is free for it",
    (WAITS, APP): "more than max_running requests are in the app at the same time",
    (WAITS, REFUSED): "a request is refused although it could wait",
    (REFUSED, APP): "more than max_running requests are in the app at the same time",
    (REFUSED, WAITS): "a request beyond the limits is not refused at once",
    (GONE, APP): "a request whose client has left is in the app",
    (APP, GONE): "a call to the app has ended too early",
    ("order", "order"): "waiting requests are not served in the order in which they arrived",
    (REFUSED, BOTH): "the app is called for a refused request",
}
"""What it means that somebody is elsewhere, for tests that do not say it better."""


def play(room, scene, mistakes=None, **arguments):
    """Plays a scene that tells where everybody stands; fails if somebody stands elsewhere."""
    require_told(room.play(scene, **arguments), mistakes)


def require_told(told, mistakes=None):
    """`told` is a Hall's; `mistakes` is one sentence for all that is otherwise, or some of SENTENCES."""
    if not told:
        return
    pair = tuple(told["pair"])
    if isinstance(mistakes, str) and LOST not in pair[1]:
        sentence = mistakes
    elif LOST in pair[1]:
        sentence = "a request's call ends without a response and without calling the app"
    else:
        known = SENTENCES | (mistakes if isinstance(mistakes, dict) else {})
        sentence = known.get(pair, f"a request is {pair[1]}, but should be {pair[0]}")
    fail(sentence, sent=told["when"], expected=told["expected"], got=told["got"])


def untold(result, key):
    """A scene's result by that name; fails where its story was otherwise before."""
    require_told(result.get("told"))
    return result[key]


def test_max_running_requests_run_at_once(shared_room):
    play(shared_room, running_at_once)


def test_no_more_than_max_running_run(shared_room):
    play(shared_room, too_many)


def test_the_next_goes_in_when_a_place_is_free(shared_room):
    play(shared_room, next_goes_in)


def test_a_place_that_is_handed_on_is_counted(shared_room):
    mistakes = {
        (WAITS, REFUSED): "a request whose turn has come still counts as waiting",
        (WAITS, APP): "a place that is handed over counts as free, too",
    }
    play(shared_room, handed_on, mistakes)


def test_max_waiting_requests_wait(shared_room):
    play(shared_room, too_many_waiting)


def test_with_max_waiting_0_nobody_waits(shared_room):
    play(shared_room, nobody_may_wait)


def test_a_refusal_leaves_nothing_behind(shared_room):
    gives = "a refusal frees a place"
    mistakes = {(WAITS, APP): gives, (REFUSED, APP): gives}
    mistakes[WAITS, REFUSED] = mistakes[APP, REFUSED] = "a refused request is still counted afterwards"
    play(shared_room, refused_again_and_again, mistakes)


def test_first_come_first_served(shared_room):
    found = shared_room.play(in_order)
    require_told(found if "pair" in found else None)
    require(
        found["most"] <= 1,
        "more than max_running requests are in the app at the same time",
        expected=1,
        got=found["most"],
    )
    came, entered = found["came"], found["entered"]
    mistake = "waiting requests are not served in the order in which they arrived"
    if entered[1:] == came[:0:-1]:
        mistake += ": the last to arrive is served first"
    elif sorted(entered[:4]) != sorted(came[:4]) and entered.replace("B", "").replace("D", "") == "ACEFG":
        mistake = (
            "a request whose body arrives late loses its turn: it should count as arrived as soon as its call begins"
        )
    require(
        entered == came,
        mistake,
        sent="max_running=1; A to G arrive one after another, but the bodies of B and D arrive later",
        expected=" ".join(came),
        got=" ".join(entered),
    )
    found = shared_room.play(in_order_without_one)
    require_told(found if "pair" in found else None)
    # that one who has left does not go in is another test's concern
    require(
        found["entered"] == found["came"] or "C" in found["entered"],
        "a request that leaves while it waits changes the order of the others",
        sent="max_running=1; A to F arrive one after another; C's client leaves while it waits",
        expected=" ".join(found["came"]),
        got=" ".join(found["entered"]),
    )


def test_a_newcomer_overtakes_nobody(shared_room):
    overtakes = "a newcomer overtakes the waiting requests: it takes a place that has just become free"
    play(
        shared_room,
        newcomers,
        {(APP, WAITS): overtakes, (APP, REFUSED): overtakes, (WAITS, APP): overtakes, ("order", "order"): overtakes},
    )


def test_waiting_has_no_time_limit(shared_room):
    mistake = "a request does not wait until its turn comes: it gives up after a while"
    play(shared_room, patience, {(WAITS, REFUSED): mistake, (APP, GONE): "a call to the app is cut off after a while"})


# refusals


def refused(room):
    """[how it came about, what was seen, retry_after_s] for each."""
    if "refusals" not in room.kept:
        room.kept["refusals"] = untold(room.play(refusals), "refusals")
    for how, seen, retry_after_s in room.kept["refusals"]:
        if seen["status"] is None:
            got = seen["error"] or ("in the app" if seen["entered"] else "no response")
            fail("a request beyond the limits is not refused at once", sent=how, expected=503, got=got)
        yield how, seen, retry_after_s


def test_a_refusal_comes_at_once(shared_room):
    place = untold(shared_room.play(while_the_clock_stands), "place")
    require(
        place == REFUSED,
        "a refusal is not sent at once: the request waits for a while first",
        sent="max_running=1, max_waiting=1; A and B arrive, then C;"
        " the event loop keeps running, but its clock stands still",
        expected=f"C {REFUSED}",
        got=f"C {place}",
    )


def test_a_refusal_is_a_503(shared_room):
    for how, seen, _ in refused(shared_room):
        require(
            seen["status"] == 503, "a refused request does not get a 503", sent=how, expected=503, got=seen["status"]
        )


def test_a_refusal_is_a_whole_response(shared_room):
    for how, seen, _ in refused(shared_room):
        got = ", ".join(seen["types"])
        require(
            seen["as bytes"],
            "a header is not a pair of `bytes` objects, as ASGI requires",
            sent=how,
            got=str(seen["headers"]),
        )
        starts = seen["types"].count("http.response.start")
        only = set(seen["types"]) == {"http.response.start", "http.response.body"}
        whole = seen["whole"] and starts == 1 and only
        require(
            whole,
            "a refusal is not one complete response",
            sent=how,
            expected="http.response.start, then http.response.body",
            got=got,
        )
        length = dict(seen["headers"]).get("content-length")
        require(
            length is None or length == str(len(seen["body"].encode())),
            "the Content-Length of a refusal is not the length of its body",
            sent=how,
            expected=str(len(seen["body"].encode())),
            got=length,
        )
        require(
            seen["ended"] and seen["error"] is None,
            "the call of a refused request does not return",
            sent=how,
            expected="the call returns when the response has been sent",
            got=seen["error"] or "the call goes on",
        )


def test_a_refusal_is_application_json(shared_room):
    for how, seen, _ in refused(shared_room):
        types = [value for name, value in seen["headers"] if name == "content-type"]
        got = ", ".join(types) or "no Content-Type"
        is_json = len(types) == 1 and types[0].partition(";")[0].strip().lower() == "application/json"
        require(is_json, "a refusal is not application/json", sent=how, expected="application/json", got=got)


def test_a_refusal_says_overloaded(shared_room):
    expected = '{"error": {"message": "...", "type": "overloaded", "param": null, "code": null}}'
    for how, seen, _ in refused(shared_room):
        facts = {"sent": how, "expected": expected, "got": seen["body"]}
        try:
            data = json.loads(seen["body"])
        except ValueError:
            fail("the body of a refusal is not JSON", **facts)
        error = data.get("error") if isinstance(data, dict) else None
        require(isinstance(error, dict), "a refusal's body has no `error` object", **facts)
        require(set(data) == {"error"}, "a refusal's body contains more than `error`", **facts)
        require(
            set(error) == {"message", "type", "param", "code"},
            "a refusal's `error` does not have the four fields `message`, `type`, `param` and `code`",
            **facts,
        )
        message = error["message"]
        require(isinstance(message, str), "a refusal's `message` is not a string", **facts)
        require(message.strip() != "", "a refusal's `message` is empty", **facts)
        require(error["type"] == "overloaded", "a refusal's `type` is not `overloaded`", **facts)
        nothing = error["param"] is None and error["code"] is None
        require(nothing, "a refusal's `param` and `code` are not null", **facts)


def test_a_refusal_says_when_to_come_again(shared_room):
    for how, seen, retry_after_s in refused(shared_room):
        values = [value for name, value in seen["headers"] if name == "retry-after"]
        require(
            values == [str(retry_after_s)],
            "a refusal's Retry-After is not `retry_after_s`" if values else "a refusal has no Retry-After",
            sent=how,
            expected=f"Retry-After: {retry_after_s}",
            got=", ".join(values) or None,
        )


def test_a_refused_request_never_reaches_the_app(shared_room):
    for how, seen, _ in refused(shared_room):
        reached = seen["entered"] or seen["entered later"]
        require(not reached, "the app is called for a refused request", sent=how, expected="no call")


def test_a_refusal_does_not_wait_for_the_body(shared_room):
    mistake = "a refusal waits for the request's body"
    play(shared_room, without_a_body, {(REFUSED, WAITS): mistake, ("", ""): mistake})


# places


def play_ending(room, how, mistake):
    mistakes = {(APP, WAITS): mistake, (APP, REFUSED): mistake}
    mistakes[WAITS, APP] = "the end of a call frees more than one place"
    cancelled = how.startswith("is cancelled")
    mistakes[GONE, APP] = (
        "a cancellation does not reach the app"
        if cancelled
        else "a call to the app keeps running although it should have ended"
    )
    play(room, endings, mistakes, how=how)


def test_an_answers_end_gives_its_place_back(shared_room):
    play_ending(shared_room, "sends an answer and ends", "the end of an answer does not free its place")


def test_a_call_that_sends_nothing_gives_its_place_back(shared_room):
    play_ending(
        shared_room, "returns without sending anything", "a call to the app that sends nothing does not free its place"
    )


def test_an_error_gives_its_place_back(shared_room):
    for how in ("raises", "raises mid-answer"):
        play_ending(shared_room, how, "a call to the app that fails does not free its place")


def test_a_cancellation_gives_its_place_back(shared_room):
    for how in ("is cancelled", "is cancelled mid-answer", "raises a CancelledError"):
        play_ending(shared_room, how, "a call to the app that is cancelled does not free its place")


def test_an_end_after_the_client_has_left_gives_its_place_back(shared_room):
    how = "ends after its client has left"
    play_ending(shared_room, how, "a call that ends after its client has left does not free its place")


def test_a_place_is_given_back_once(shared_room):
    twice = "the end of a call frees more than one place"
    play(shared_room, given_back_once, {(WAITS, APP): twice})


def test_the_last_piece_gives_no_place_back(shared_room):
    mistake = "the last piece frees the place while the app is still working"
    play(shared_room, after_the_last_piece, {(WAITS, APP): mistake})


def test_leaving_gives_no_place_back(shared_room):
    mistake = "a client that leaves frees its place while the app is still working"
    play(shared_room, after_leaving, {(WAITS, APP): mistake})


def test_a_cancelled_call_keeps_its_place_to_its_end(shared_room):
    mistake = "a cancelled call to the app frees its place before it has ended"
    play(
        shared_room,
        cleaning_up,
        {(WAITS, APP): mistake, ("", "not cancelled"): "a cancellation does not reach the app"},
    )


def test_the_app_is_never_cancelled(shared_room):
    for case, cancelled in untold(shared_room.play(never_cancelled), "cancelled").items():
        require(
            not cancelled,
            "the app's call is cancelled: the app decides what to do when its client leaves",
            sent=case,
            expected="the app keeps working",
            got="it was cancelled, or has ended",
        )


# those who leave while they wait


def test_who_leaves_while_waiting_never_reaches_the_app(shared_room):
    require_entered(shared_room, "leave", "a client that left while it waited still reaches the app")


def test_who_is_cancelled_while_waiting_never_reaches_the_app(shared_room):
    require_entered(shared_room, "cancel", "a request whose call was cancelled while it waited still reaches the app")


def require_entered(room, how, mistake):
    entered = room.play(leaving, how=how)
    if not isinstance(entered, str):
        require_told(entered)
    what = {"leave": "the clients of B and D leave", "cancel": "the calls of B and D are cancelled"}[how]
    require(
        not set(entered) & set("BD"),
        mistake,
        sent=f"A runs; B, C and D wait; {what}; A's answer ends",
        expected="C reaches the app, but B and D do not",
        got=f"reaching the app: {', '.join(entered)}",
    )


def test_who_leaves_makes_room_for_others_to_wait(shared_room):
    mistake = "a client that has left keeps its place in the queue"
    play(shared_room, leaving_makes_room, {(WAITS, REFUSED): mistake, (APP, WAITS): mistake}, how="leave")


def test_who_is_cancelled_makes_room_for_others_to_wait(shared_room):
    mistake = "a request whose call was cancelled keeps its place in the queue"
    play(shared_room, leaving_makes_room, {(WAITS, REFUSED): mistake, (APP, WAITS): mistake}, how="cancel")


def test_no_place_is_lost_when_one_leaves_at_its_turn(shared_room):
    lost = "a place is lost when a client leaves just as its turn comes"
    mistakes = {(APP, WAITS): lost, (APP, REFUSED): lost, (WAITS, REFUSED): lost}
    play(shared_room, place_not_lost, mistakes, how="leave")
    play(shared_room, all_leave, mistakes, how="leave")


def test_no_place_is_lost_when_one_is_cancelled_at_its_turn(shared_room):
    lost = "a place is lost when a call is cancelled just as its turn comes"
    mistakes = {(APP, WAITS): lost, (APP, REFUSED): lost, (WAITS, REFUSED): lost}
    play(shared_room, place_not_lost, mistakes, how="cancel")
    play(shared_room, all_leave, mistakes, how="cancel")


def test_no_place_is_lost_when_one_leaves_before_its_body_is_here(shared_room):
    lost = "a place is lost when a client whose turn has come leaves before its body has arrived"
    mistakes = {(APP, WAITS): lost, (APP, REFUSED): lost}
    play(shared_room, leaving_before_the_body_is_here, mistakes, how="leave")
    play(shared_room, leaving_before_the_body_is_here, mistakes, how="cancel")


# what a client sends


def test_what_is_sent_while_waiting_reaches_the_app(shared_room):
    for case, sent, got, same in untold(shared_room.play(bodies), "bodies"):
        require(
            same,
            "what a client sends while it waits does not reach the app complete and in order",
            sent=f"a waiting request, with {case}",
            expected=sent,
            got=got,
        )


def test_the_app_hears_that_its_client_has_left(shared_room):
    for case, (before, after) in untold(shared_room.play(hearing), "heard").items():
        require(
            before != "http.disconnect",
            "the app is told of a disconnect while its client is still connected",
            sent=f"{case}; the app calls receive again after the body",
            expected="nothing, as long as the client stays",
            got=before,
        )
        require(
            after == "http.disconnect",
            "the app is not told that its client has left",
            sent=f"{case}; then its client leaves",
            expected="http.disconnect",
            got=after or "nothing",
        )


# what passes


def test_other_paths_pass(shared_room):
    taken = "a request for another path is blocked"
    mistakes = {(APP, WAITS): taken, (APP, REFUSED): taken}
    mistakes[WAITS, APP] = mistakes[REFUSED, APP] = "the end of a request for another path frees a place"
    play(shared_room, other_paths, mistakes)


def require_passing(room, *names):
    if "passing" not in room.kept:
        room.kept["passing"] = room.play(passing)
    for case, problem in room.kept["passing"].items():
        if case.startswith(names) and ("another path" in case) == ("another path" in names[0]):
            fail(
                f"{case.partition(' while')[0].partition(' after')[0]} does not pass through unchanged",
                sent=case,
                **problem,
            )


def test_what_is_sent_both_ways_is_not_changed(shared_room):
    require_passing(shared_room, "a request")


def test_requests_for_other_paths_are_not_touched(shared_room):
    require_passing(shared_room, "a request for another path")


def test_websockets_pass(shared_room):
    require_passing(shared_room, "a WebSocket")
    mistakes = {(APP, WAITS): "a WebSocket takes a place", (WAITS, APP): "the end of a WebSocket frees a place"}
    play(shared_room, sockets, mistakes)


def test_lifespan_passes(shared_room):
    require_passing(shared_room, "the server's")


def test_what_the_app_sends_is_passed_on_as_it_comes(shared_room):
    for case, here in untold(shared_room.play(pieces), "here").items():
        require(
            here == 4,
            "what the app sends is held back: it goes out later than the app sends it",
            sent=f"{case}; the app sends {'a piece' if here else 'the start of a response'}, and waits",
            expected="the piece arrives while the app waits" if here else "the start arrives while the app waits",
            got=f"piece {here} of 3 has not arrived" if here else "the start has not arrived",
        )


def test_errors_come_through(shared_room):
    for case, got in untold(shared_room.play(errors), "errors").items():
        kind = next((each for each in ("RuntimeError", "ConnectionResetError") if each in case), "Own")
        require(
            got == f"{kind}: no bread" or ("CancelledError" in case and got.startswith("CancelledError")),
            "the app's error does not get through",
            sent=f"the app raises {case}",
            expected="the same error, with its type and message",
            got=got,
        )


# counts, and what is asked for by name


def test_it_says_how_many_run_and_wait(shared_room):
    for when, expected, got in shared_room.play(counts):
        require(
            got == expected,
            "`running` and `waiting` are not the numbers of requests in the app and in the queue",
            sent=f"max_running=2, max_waiting=2; {when}",
            expected=f"running={expected[0]}, waiting={expected[1]}",
            got=f"running={got[0]}, waiting={got[1]}",
        )


def test_two_admissions_share_nothing(shared_room):
    play(shared_room, two_of_them, "two Admissions share a count")


def test_every_method_counts(shared_room):
    free = "requests with some methods do not take a place"
    play(shared_room, methods, {(REFUSED, APP): free, (WAITS, APP): free, (REFUSED, WAITS): free})


def test_path_says_what_is_counted(shared_room):
    play(
        shared_room,
        paths,
        {
            (REFUSED, APP): "requests to `path` are not limited",
            (WAITS, APP): "requests to `path` are not limited",
            (APP, REFUSED): "requests to paths other than `path` are limited",
        },
    )


def test_behind_a_real_server(room):
    url = room.serve(served)
    wait_s = room.limit_s * 0.4

    def send(name, length):
        before = room.arrived(PATH)
        stream = Stream(room, url, {"prompt": name * length}, path=PATH)
        room.wait(lambda: room.arrived(PATH) > before, "the server no longer accepts requests")
        room.turns()
        return stream

    def require_text(name, stream, length):
        room.set(name)
        reply = stream.reply(wait_s)
        require(
            reply.text == f"data: {name}\n\ndata: {length}\n\n",
            "on a real server, a request does not get its answer",
            sent=f"{stream.what}; the request was admitted at once"
            if name == "A"
            else f"{stream.what}; the request has waited",
            expected=f"{name}, and the length of its prompt, {length}",
            got=f"{reply.status} {reply.text}",
        )

    a = send("A", 10)
    room.wait(lambda: room.notes()["entered"], "on a real server, the first request does not reach the app", wait_s)
    b, c = send("B", 20), send("C", 100_000)
    b.leave_and_be_missed()
    e = send("E", 30)
    require_text("A", a, 10)
    require_text("C", c, 100_000)
    require_text("E", e, 30)
    require(
        room.notes()["entered"] == ["A", "C", "E"],
        "on a real server, a client that left while it waited still reaches the app",
        sent="A runs; B and C wait; B's client leaves; E arrives",
        expected="A C E",
        got=" ".join(room.notes()["entered"]),
    )
