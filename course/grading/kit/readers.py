"""Readers of a model's pieces, in the room, whom the tests steer from outside.

In the room, a scene opens them on an event loop in a thread:

    def open_readers(answer, inside, pool=None):
        inside.kept["readers"] = Readers(inside, make=..., call=..., pool=pool)

In the test:

    talk = Talk(room, open_readers)
    [number] = talk.begin({"prompt": "hi", "options": {...}})   # one starts to read
    talk.until_held(number, 3)                                  # the model is held before its third step
    talk.cancel(number)                                         # its reader leaves

A test decides by what each reader has got until then, by how many steps the model made, and by whether the
readers' event loop still turns.
"""

import asyncio
import inspect
import linecache
import re
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from course.grading.kit.tokenizers import ENCODING, is_about_an_encoding
from course.grading.mistakes import fail, require

FOREIGN = (
    "the event loop is touched from another thread: asyncio's queues, events and futures are not thread-safe;"
    " use loop.call_soon_threadsafe"
)

# in the room


class Readers:
    """What is read from, and those who read, on an event loop in a thread."""

    def __init__(self, inside, make, call, pool=None):
        """Args:
        make: makes what is read from; called once, on the event loop.
        call: `call(made, ask)` gives the iterator of pieces. `ask` is {"prompt", "options", ...} and JSON.
        pool: how many threads the event loop's default pool has.
        """
        self.inside, self.make, self.call = inside, make, call
        self.notes = []
        self.error = None
        self.tasks, self.leave = {}, {}
        inside.notes.pop("foreign", None)
        ready = threading.Event()
        threading.Thread(target=self._run, args=(pool, ready), daemon=True).start()
        ready.wait()
        if self.error:
            raise self.error

    def _run(self, pool, ready):
        async def main():
            self.loop = asyncio.get_running_loop()
            self._note_foreign_threads()
            if pool:
                self.loop.set_default_executor(ThreadPoolExecutor(pool))
            with self.inside.probe.unwatched():  # it may warm the model up
                self.made = self.make()
            ready.set()
            await asyncio.Event().wait()

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - goes to the test
            self.error = error
            ready.set()

    def _note_foreign_threads(self):
        """Notes in which line of the answer another thread than the event loop's wakes one of its tasks."""
        own, call_soon = threading.get_ident(), self.loop.call_soon

        def noted_call_soon(*args, **kwargs):
            if threading.get_ident() != own:
                self.inside.notes.setdefault("foreign", self.line_of_the_answer())
            return call_soon(*args, **kwargs)

        self.loop.call_soon = noted_call_soon

    def line_of_the_answer(self):
        """The line in which this thread runs the answer; "" if it does not."""
        for frame, line in traceback.walk_stack(sys._getframe(1)):
            if (file := frame.f_code.co_filename) == str(self.inside.answer_file):
                return f"line {line}, in {frame.f_code.co_name}: {linecache.getline(file, line).strip()}"
        return ""

    def begin(self, ask):
        """Has a reader ask: {"prompt", "options", "stops_after": after how many pieces it reads no
        more and waits to be sent away, "pauses_after": after how many it waits for that and reads on}.
        Returns its number."""
        number = len(self.notes)
        note = {"ask": ask, "asked": False, "pieces": [], "end": None}
        note |= {"closing": False, "left": False}
        self.notes.append(note)
        self.loop.call_soon_threadsafe(self._begin, number, note)
        return number

    def _begin(self, number, note):
        self.leave[number] = asyncio.Event()
        task = asyncio.create_task(self._read(note, self.leave[number]))
        self.tasks[number] = task
        task.add_done_callback(lambda task: self._ended(number, note, task))

    def _ended(self, number, note, task):
        del self.tasks[number]  # an ended task keeps its traceback's frames, and what is in them
        note["end"] = note["end"] or "CancelledError"
        note["left"] = True
        if not task.cancelled() and task.exception():
            self.error = task.exception()

    async def _read(self, note, leave):
        try:
            await self._read_all(note, leave)
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            note["end"] = {**self.inside.outcome(_raise, error), "encoding": is_about_an_encoding(error)}

    async def _read_all(self, note, leave):
        ask, thing = note["ask"], None
        try:
            note["asked"] = True
            thing = self.call(self.made, ask)
            # other forms than the contract's are read as well: one test is about them
            if inspect.isawaitable(thing):
                thing = await thing
            if hasattr(thing, "__aiter__") and not hasattr(thing, "__anext__"):
                thing = aiter(thing)
            while len(note["pieces"]) != ask.get("stops_after"):
                if len(note["pieces"]) == ask.get("pauses_after"):
                    await leave.wait()
                try:
                    piece = await _next(thing)
                except StopAsyncIteration:
                    note["end"] = "end"
                    return
                note["pieces"].append(self.inside.plain(getattr(piece, "text", piece)))
            await leave.wait()
            if hasattr(thing, "aclose"):
                note["closing"] = True
                await thing.aclose()
            note["end"] = "closed"
        finally:
            del thing  # one who is cancelled keeps nothing

    def send_away(self, number, how):
        def go():
            if how == "close":
                self.leave[number].set()
            elif number in self.tasks:
                self.tasks[number].cancel()

        self.loop.call_soon_threadsafe(go)

    def steps(self, number):
        """How many steps the model has made for that reader's prompt."""
        return self.inside.probe.steps_of(self.notes[number]["ask"]["prompt"])

    def new_ids(self, number):
        conversations = self.inside.probe.report()["conversations"]
        prompt = self.notes[number]["ask"]["prompt"]
        return [id for each in conversations if prompt in each["prompt"] for id in each["new_ids"]]


async def _next(thing):
    if hasattr(thing, "__anext__"):
        return await thing.__anext__()
    try:
        return next(thing)
    except StopIteration:
        raise StopAsyncIteration from None


def _raise(error):
    raise error


def begin(answer, inside, asks):
    return [inside.kept["readers"].begin(ask) for ask in asks]


def send_away(answer, inside, number, how):
    inside.kept["readers"].send_away(number, how)


def until(answer, inside, what, number, value, limit_s):
    """Waits until that holds; whether it came to hold before nothing moved for `limit_s`."""
    readers, probe = inside.kept["readers"], inside.probe
    note = None if number is None else readers.notes[number]

    def held():
        # at its first step a prompt that comes in parts does not yet say whose it is
        return (value == 1 or readers.steps(number) >= value) and probe.held > 0

    holds = {
        "all asked": lambda: all(each["asked"] for each in readers.notes),
        "all ended": lambda: all(each["end"] for each in readers.notes),
        "ended": lambda: note["end"] is not None,
        "left": lambda: note["left"],
        "has pieces": lambda: len(note["pieces"]) >= value or note["end"],
        "has text": lambda: solid(value) in solid(joined(note["pieces"])),
        "held": lambda: note["end"] or held(),
    }[what]
    seen, end, pause = None, 0.0, 0.0
    while not holds():
        if readers.error:
            raise readers.error
        moved = [probe.steps]
        for each in readers.notes:
            moved += [each["asked"], len(each["pieces"]), bool(each["end"])]
        if moved != seen:
            seen, end, pause = moved, time.monotonic() + limit_s, 0.001
        elif time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(1.1 * pause, 0.02)
    return True


def solid(text):
    """The text without blanks."""
    return "".join(text.split())


def joined(pieces):
    return "".join(piece for piece in pieces if isinstance(piece, str))


def loop_turns(answer, inside, limit_s):
    """Whether the readers' event loop turns some rounds within the limit."""
    loop, turned = inside.kept["readers"].loop, threading.Event()

    def turn(rounds):
        if rounds:
            loop.call_later(0.001, turn, rounds - 1)
        else:
            turned.set()

    loop.call_soon_threadsafe(turn, 4)
    return turned.wait(limit_s)


def look(answer, inside, number):
    """What that reader has got, and what the model did for it."""
    readers = inside.kept["readers"]
    note = readers.notes[number]
    return {**note, "steps": readers.steps(number), "new_ids": readers.new_ids(number)}


def look_at_all(answer, inside):
    return inside.kept["readers"].notes


# in the test


class Talk:
    """The readers in the room, as a test sees and steers them."""

    def __init__(self, room, open_readers, as_call, pool=None, **arguments):
        """Args:
        open_readers: the scene that opens them, with `pool` and `arguments`.
        as_call: `as_call(ask)` is the call as a learner would write it.
        """
        self.room, self.as_call = room, as_call
        # how long nothing may move before a thing that needs milliseconds counts as not happening;
        # less where another test decides about that thing
        self.soon_s, self.brief_s = 0.3 * room.limit_s, 0.1 * room.limit_s
        room.play(open_readers, pool=pool, **arguments)

    def begin(self, *asks):
        """Has a reader ask each of them, all at once; returns the readers' numbers."""
        return self.room.play(begin, asks=list(asks))

    def cancel(self, number, limit_s=None):
        """Cancels the reader while it waits; whether it was soon gone."""
        self.room.play(send_away, number=number, how="cancel")
        return self.until("left", number, None, limit_s or self.brief_s)

    def close(self, number, limit_s=None):
        """Has a reader that has stopped reading call aclose(); whether it was soon gone."""
        self.room.play(send_away, number=number, how="close")
        return self.until("left", number, None, limit_s or self.brief_s)

    def until_two_pieces(self, number):
        """Waits until it has them; if they do not come while the model is held, lets the model go:
        what does not stream is another test's concern. Returns the step the model has come to."""
        if not self.until("has pieces", number, 2, self.brief_s):
            self.room.probe.release()
            self.until("has pieces", number, 2)
        return self.look(number)["steps"]

    def until(self, what, number=None, value=None, limit_s=None):
        """Waits until that holds; False when nothing has moved for a while and it does not."""
        arguments = {"what": what, "number": number, "value": value}
        return self.room.play(until, limit_s=limit_s or self.soon_s, **arguments)

    def look(self, number):
        return self.room.play(look, number=number)

    def look_at_all(self):
        return self.room.play(look_at_all)

    def call(self, number):
        return self.as_call(self.look(number)["ask"])

    def until_held(self, number, step):
        """Waits until that reader's conversation is held before that step."""
        if not self.until("held", number, step):
            self.hangs(number, "the model is never asked for the answer's next step")
        reader = self.look(number)
        if reader["end"]:
            self.require_end(reader)
            fail("the answer ends too soon", sent=self.as_call(reader["ask"]), got=shown(reader))

    def until_all_wait(self):
        """Waits until all readers wait for their answers; or as many as can."""
        self.until("all asked", limit_s=self.brief_s)
        self.room.play(loop_turns, limit_s=self.brief_s)

    def finish(self, number, mistake="the answer never ends"):
        """Waits until that reader has come to an end, of whatever kind; returns `look` of it."""
        if not self.until("ended", number):
            self.hangs(number, mistake)
        return self.look(number)

    def answer(self, ask):
        """Asks, and waits for the whole answer: `look` of its reader, with "said" too.

        Raises:
            Mistake: it does not come to an end, or with an error.
        """
        reader = self.finish(self.begin(ask)[0])
        self.require_end(reader)
        return {**reader, "said": joined(reader["pieces"])}

    def hangs(self, number, mistake):
        self.require_own_thread(number)
        if not self.turns(self.brief_s):
            self.blocked(self.call(number))
        reader = self.look(number)
        raise self.room.hung(mistake, sent=self.as_call(reader["ask"]), got=shown(reader))

    def require_own_thread(self, number):
        """For what does not come: whether a thread has put it where a sleeping event loop does not look."""
        line = self.room.notes().get("foreign")
        if line is not None:
            raise self.room.hung(FOREIGN, sent=self.call(number), where=line or None)

    def turns(self, limit_s=None):
        """Whether the readers' event loop still turns."""
        in_a_loop = self.room.probe.report()["steps_in_a_loop"] > 0
        limit_s = limit_s or (self.brief_s if in_a_loop else self.soon_s)
        return self.room.play(loop_turns, limit_s=limit_s)

    def blocked(self, call, when="the model was paused"):
        raise self.room.hung(
            f"a blocking call inside async def stopped the event loop while {when}",
            sent=call,
            expected="other coroutines keep running: the model runs in another thread, and the code that waits for it"
            " uses await",
            got="nothing else ran in the event loop",
        )

    def require_end(self, reader, text="", mistake="the answer is incomplete", **facts):
        """Requires that the answer came to its end, and with that text."""
        end, call = reader["end"], self.as_call(reader["ask"])
        if isinstance(end, dict):
            mistake = f"{call.partition('(')[0]} raises {end['raised'][0]}: {end['message']}".rstrip(": ")
            fail(ENCODING if end["encoding"] else mistake, sent=call, where=end["where"])
        said = plain_end(joined(reader["pieces"]))
        complete = end == "end" and solid(said).endswith(solid(text))
        facts = {"sent": call, "expected": repr(text), "got": shown(reader), **facts}
        require(complete, mistake, **facts)


def shown(reader):
    """What a reader has got, in one line."""
    pieces, end = reader["pieces"], reader["end"]
    if isinstance(end, dict):
        end = f"{end['raised'][0]}: {end['message']}"
    what = f"{len(pieces)} piece{'s' if len(pieces) != 1 else ''}"
    what += f", joined {joined(pieces)!r}" if pieces else ""
    return what + (f", then {end.replace('end', 'the end', end == 'end')}" if end else ", but no end")


def plain_end(said):
    """Without special tokens and blanks at the end: they are other tests' concern."""
    return re.sub(r"<\|[^|]*\|>", "", said).rstrip()
