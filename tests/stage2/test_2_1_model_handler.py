"""2.1: the model handler, read inside the room by readers that the tests steer from outside.

The model is held, stepped, broken and told what to say; a test decides by what each reader has got
until then, by how many steps the model made, and by whether the readers' event loop still turns.
"""

import asyncio
import inspect
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from course.grading.kit.readers import note_other_threads, require_woken
from course.grading.kit.tokenizers import NAMED_ROLES, template_ids
from course.grading.mistakes import fail, require

MANY = 64
POOL = 6
MOST_AFTER = 2
"""Steps that the model may make after its reader has left, not counting the one in progress."""
COUNTING = "one two three four five six"
LONG = " ".join([COUNTING] * 12)
MIXED = "answers at once mix: something of one answer is kept where all share it (in self?)"
WAITS = "leaving waits for the model: it came to no end while the model was held"
GONE = "the reader is gone at once, and the model stops a step later"


# in the room


class Readers:
    """The answer's handler and those who read from it, on an event loop in a thread of its own."""

    def __init__(self, answer, inside, pool):
        self.inside = inside
        self.notes = []
        self.error = None
        self.tasks, self.leave = {}, {}
        note_other_threads(inside)
        ready = threading.Event()
        threading.Thread(target=self._run, args=(answer, pool, ready), daemon=True).start()
        ready.wait()

    def _run(self, answer, pool, ready):
        async def main():
            self.loop = asyncio.get_running_loop()
            if pool:
                self.loop.set_default_executor(ThreadPoolExecutor(pool))
            model, tokenizer = self.inside.tiny_without_layers
            settings = model.generation_config  # they sample, as those of most chat models do
            settings.do_sample, settings.temperature, settings.top_p = True, 0.7, 0.8
            settings.top_k = 20
            with self.inside.probe.unwatched():  # it may warm the model up
                self.handler = answer.ModelHandler(model, tokenizer)
            ready.set()
            await asyncio.Event().wait()

        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - goes to the test
            self.error = error
            ready.set()

    def begin(self, ask):
        """Has a reader ask: {"prompt", "options", "stops_after": after how many pieces it reads no
        more and waits to be sent away}. Returns its number."""
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
            note["end"] = self.inside.outcome(_raise, error)

    async def _read_all(self, note, leave):
        ask, thing = note["ask"], None
        try:
            note["asked"] = True
            thing = self.handler.generate(ask["prompt"], **ask["options"])
            # other forms than the contract's are read as well: one test is about them
            if inspect.isawaitable(thing):
                thing = await thing
            if hasattr(thing, "__aiter__") and not hasattr(thing, "__anext__"):
                thing = aiter(thing)
            while len(note["pieces"]) != ask.get("stops_after"):
                try:
                    piece = await _next(thing)
                except StopAsyncIteration:
                    note["end"] = "end"
                    return
                note["pieces"].append(self.inside.plain(piece))
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
        conversations = self.inside.probe.report()["conversations"]
        return sum(each["steps"] for each in conversations if self._is_of(number, each))

    def new_ids(self, number):
        conversations = self.inside.probe.report()["conversations"]
        return [id for each in conversations if self._is_of(number, each) for id in each["new_ids"]]

    def _is_of(self, number, conversation):
        return self.notes[number]["ask"]["prompt"] in conversation["prompt"]


async def _next(thing):
    if hasattr(thing, "__anext__"):
        return await thing.__anext__()
    try:
        return next(thing)
    except StopIteration:
        raise StopAsyncIteration from None


def _raise(error):
    raise error


def open_readers(answer, inside, pool=None):
    readers = inside.kept["readers"] = Readers(answer, inside, pool)
    if readers.error:
        raise readers.error


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
        return (value == 1 or readers.steps(number) >= value) and probe.report()["held"] > 0

    holds = {
        "all asked": lambda: all(each["asked"] for each in readers.notes),
        "all ended": lambda: all(each["end"] for each in readers.notes),
        "ended": lambda: note["end"] is not None,
        "left": lambda: note["left"],
        "has pieces": lambda: len(note["pieces"]) >= value or note["end"],
        "has text": lambda: _solid(value) in _solid(_joined(note["pieces"])),
        "held": lambda: note["end"] or held(),
    }[what]
    seen, end = None, 0.0
    while not holds():
        if readers.error:
            raise readers.error
        moved = [probe.report()["steps"]]
        for each in readers.notes:
            moved += [each["asked"], len(each["pieces"]), bool(each["end"])]
        if moved != seen:
            seen, end = moved, time.monotonic() + limit_s
        elif time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _solid(text):
    return "".join(text.split())


def _joined(pieces):
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


def what_generate_returns(answer, inside):
    """Type and methods of what generate returns, and the default of max_new_tokens."""
    inside.probe.say("Yes.")
    found = []
    for stream in (True, False):
        thing = inside.kept["readers"].handler.generate("Hello", stream=stream)
        has = [name for name in ("__anext__", "aclose") if hasattr(thing, name)]
        found.append({"type": type(thing).__name__, "has": has})
        if inspect.iscoroutine(thing):
            thing.close()
    return found


def prompt_ids(answer, inside, prompt, template=None):
    """The ids of the chat template, and of another one from now on if it is given."""
    _, tokenizer = inside.tiny_without_layers
    tokenizer.chat_template = template or tokenizer.chat_template
    system = {"role": "system", "content": "You are a helpful assistant."}
    return template_ids(tokenizer, [system, {"role": "user", "content": prompt}])


def texts_so_far(answer, inside, text):
    """What the first 0, 1, 2, ... tokens of the text say."""
    _, tokenizer = inside.tiny_without_layers
    ids = tokenizer(text)["input_ids"]
    return [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]


def plain_words(answer, inside):
    """The ids of twenty tokens that are plain words."""
    _, tokenizer = inside.tiny_without_layers
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [id for word, id in vocabulary if re.fullmatch("Ġ[a-z]{3,}", word)][:20]


# what the tests share


def ask(prompt, **options):
    return {"prompt": prompt, "options": options}


def as_call(ask):
    options = "".join(f", {name}={value!r}" for name, value in ask["options"].items())
    return f"generate({ask['prompt']!r}{options})"


class Talk:
    """The readers in the room, as a test sees and steers them."""

    def __init__(self, room, pool=None):
        self.room = room
        # how long nothing may move before a thing that needs milliseconds counts as not happening;
        # less where another test decides about that thing
        self.soon_s, self.brief_s = 0.3 * room.limit_s, 0.1 * room.limit_s
        room.play(open_readers, pool=pool)

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

    def call(self, number):
        return as_call(self.look(number)["ask"])

    def until_held(self, number, step):
        """Waits until that reader's conversation is held before that step."""
        if not self.until("held", number, step):
            self.hangs(number, "the model is not asked for the answer's next step")
        reader = self.look(number)
        if reader["end"]:
            require_end(reader)
            fail("the answer ends too soon", sent=as_call(reader["ask"]), got=shown(reader))

    def finish(self, number, mistake="the answer does not come to its end"):
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
        require_end(reader)
        return {**reader, "said": _joined(reader["pieces"])}

    def hangs(self, number, mistake):
        if not self.turns(self.brief_s):
            self.blocked(self.call(number))
        reader = self.look(number)
        sent = as_call(reader["ask"])
        require_woken(self.room, sent)
        raise self.room.hung(mistake, sent=sent, got=shown(reader))

    def turns(self, limit_s=None):
        """Whether the readers' event loop still turns."""
        in_a_loop = self.room.probe.report()["steps_in_a_loop"] > 0
        limit_s = limit_s or (self.brief_s if in_a_loop else self.soon_s)
        return self.room.play(loop_turns, limit_s=limit_s)

    def blocked(self, call, when="the model was held"):
        raise self.room.hung(
            f"a blocking call inside async def: the event loop stood still while {when}",
            sent=call,
            expected="other coroutines go on: the model runs in another thread, and who waits for it"
            " does so with await",
            got="nothing else ran in the event loop",
        )


def shared(room):
    """The Talk of a room that tests share."""
    if "talk" not in room.kept:
        room.kept["talk"] = Talk(room)
    return room.kept["talk"]


def require_end(reader, text="", mistake="the answer is not complete", **facts):
    """Requires that the answer came to its end, and with that text."""
    end, call = reader["end"], as_call(reader["ask"])
    if isinstance(end, dict):
        fail(f"generate raises {end['raised'][0]}", sent=call, got=end["said"], where=end["where"])
    said = plain_end(_joined(reader["pieces"]))
    complete = end == "end" and _solid(said).endswith(_solid(text))
    facts = {"sent": call, "expected": repr(text), "got": shown(reader), **facts}
    require(complete, mistake, **facts)


def shown(reader):
    """What a reader has got, in one line."""
    pieces, end = reader["pieces"], reader["end"]
    if isinstance(end, dict):
        end = end["said"]
    what = f"{len(pieces)} piece{'s' if len(pieces) != 1 else ''}"
    what += f", joined {_joined(pieces)!r}" if pieces else ""
    return what + (f", then {end.replace('end', 'the end', end == 'end')}" if end else ", no end")


def plain_end(said):
    """Without special tokens and blanks at the end: they are other tests' concern."""
    return re.sub(r"<\|[^|]*\|>", "", said).rstrip()


def must_be_out(so_far):
    """What has to be out when the model is held after the last of these tokens: up to the last
    newline or ideograph at a token's end, or the last blank."""
    must = so_far[-1][: so_far[-1].rfind(" ") + 1]
    for text in so_far:
        if re.search(r"[\n\u4e00-\u9fff]$", text) and len(text) > len(must):
            must = text
    return must.rstrip()


# the tests


def test_generate_returns_an_async_iterator(shared_room):
    shared(shared_room)
    for found, stream in zip(shared_room.play(what_generate_returns), (True, False), strict=True):
        sent = f"handler.generate('Hello', stream={stream})"
        expected = "an object with __anext__ and aclose, as an `async def` with `yield` gives"
        if found["type"] == "coroutine":
            fail(
                "generate returns a coroutine: `async for` cannot read that",
                sent=sent,
                expected=expected,
                got="a coroutine: an `async def` without `yield`",
            )
        require(
            found["has"] == ["__anext__", "aclose"],
            "what generate returns cannot be read with `async for` and closed with `aclose()`",
            sent=sent,
            expected=expected,
            got=f"{found['type']}, which has {' and '.join(found['has']) or 'neither'}",
        )


def test_the_model_is_given_the_chat_template(room):
    talk = Talk(room)
    room.probe.say("Yes.")
    asks = [
        ask("What is a token?", stream=True),
        ask("  two blanks\n\n", stream=True),
        ask("你好 👍🏽"),
        ask("And with another template?", stream=True),
    ]
    for number, call in enumerate(asks):
        template = NAMED_ROLES if number == 3 else None
        expected = room.play(prompt_ids, prompt=call["prompt"], template=template)
        reader = talk.finish(talk.begin(call)[0])
        conversations = room.probe.report()["conversations"]
        if len(conversations) <= number:
            require_end(reader)
            fail("generate does not ask the model", sent=as_call(call))
        given = conversations[number]
        mistake = "the model is not given the chat template: apply_chat_template makes its ids"
        if template:
            mistake = "the prompt does not follow the tokenizer's own chat_template"
        elif "helpful assistant" not in given["prompt"]:
            mistake = "the model is given no system line: the chat template begins with one"
        elif not given["prompt"].endswith("assistant\n"):
            mistake = "the generation prompt is missing: add_generation_prompt=True"
        require(
            given["prompt_ids"] == expected,
            mistake,
            sent=as_call(call),
            expected=f"{len(expected)} ids: the template with the system line, the prompt unchanged,"
            " and the generation prompt",
            got=f"{len(given['prompt_ids'])} ids, which say {given['prompt']!r}",
        )


def test_the_pieces_are_the_answer(shared_room):
    talk = shared(shared_room)
    shared_room.probe.say("Yes, two.\n\n- one", "Say text 0")
    shared_room.probe.say(" It is  so . \n", "Say text 1")
    for number, text in enumerate(["Yes, two.\n\n- one", " It is  so . \n"]):
        for name, stream in (("in pieces", True), ("at once", False)):
            answer = talk.answer(call := ask(f"Say text {number} {name}", stream=stream))
            said = answer["said"]
            facts = {"sent": as_call(call), "expected": repr(text), "got": repr(said)}
            for piece in answer["pieces"]:
                if not isinstance(piece, str):
                    fail("a piece is not text", **{**facts, "got": piece})
            if "helpful assistant" in said or "Say text" in said:
                fail("the prompt comes out too: the answer begins after it (skip_prompt)", **facts)
            if "<|" in said:
                fail("special tokens come out: skip_special_tokens=True leaves them out", **facts)
            require(said == text, "the pieces joined are not what the model said", **facts)


def test_max_new_tokens_counts_new_tokens(shared_room):
    talk = shared(shared_room)
    so_far = shared_room.play(texts_so_far, text=LONG * 3)
    shared_room.probe.say(LONG * 3, "Count:")
    asks = [
        ask("Count: 60", stream=True, max_new_tokens=60),
        ask("Count: 7", stream=True, max_new_tokens=7),
        ask("Count: 1, at once", max_new_tokens=1),
        ask("Count: as many as you like"),
    ]
    for call in asks:
        most = call["options"].get("max_new_tokens", 128)
        said = plain_end(talk.answer(call)["said"])
        counts = [count for count, text in enumerate(so_far) if said.endswith(text.rstrip())]
        require(
            max(counts) == most,
            "the answer has another number of tokens than max_new_tokens: it counts new ones only",
            sent=as_call(call),
            expected=f"{most} tokens" + (", the default" if most == 128 else ""),
            got=f"{max(counts)} tokens" if max(counts) else repr(said),
        )


def test_no_character_is_broken(shared_room):
    talk = shared(shared_room)
    text = "你好，龘。これはペン안녕👍🏽👩‍👧"
    shared_room.probe.say(text, "Say hello")
    for name, stream in (("in pieces", True), ("at once", False)):
        said = talk.answer(call := ask(f"Say hello {name}", stream=stream))["said"]
        facts = {"sent": as_call(call), "expected": text, "got": said}
        if "\ufffd" in said:
            fail(
                "broken characters: a token may end within one, so a token alone cannot be decoded",
                **facts,
            )
        require(plain_end(said).endswith(text), "characters are lost on the way", **facts)


def test_a_cut_character_is_left_out(shared_room):
    talk = shared(shared_room)
    text = "No龘👋"
    so_far = shared_room.play(texts_so_far, text=text)
    shared_room.probe.say(text, "Say it cut")
    counts = [count for count, cut in enumerate(so_far) if cut.endswith("\ufffd")]
    assert counts
    for count in counts:
        expected = so_far[count].rstrip("\ufffd")
        for stream in (True, False):
            call = ask(f"Say it cut to {count}, {stream}", stream=stream, max_new_tokens=count)
            said = talk.answer(call)["said"]
            facts = {"sent": as_call(call), "expected": repr(expected), "got": repr(said)}
            mistake = "a character that max_new_tokens cuts in two comes out broken: leave it out"
            if said.startswith("\ufffd"):
                mistake = "what is left of one answer's cut character comes out in the next answer"
            require("\ufffd" not in said, mistake, **facts)
            require(expected in said, "whole characters before the cut one are lost", **facts)
            # one who counts otherwise has more of the text: that is another test's concern
            texts = [cut.rstrip("\ufffd") for cut in so_far[count:]]
            require(
                any(plain_end(said).endswith(text) for text in texts),
                "something comes out in the place of the cut character: leave it out",
                **facts,
            )


def test_no_piece_is_empty(shared_room):
    talk = shared(shared_room)
    for number, text in enumerate(["one two\n\nthree", "これ 👍🏽", ""]):
        shared_room.probe.say(text, f"Read text {number}")
        call = ask(f"Read text {number}", stream=True)
        pieces = talk.answer(call)["pieces"]
        empty = sum(piece == "" for piece in pieces)
        require(
            not empty,
            "an empty piece comes out: yield only what has text in it",
            sent=as_call(call),
            expected="no piece is empty, and an empty answer has no pieces",
            got=f"{len(pieces)} pieces, of them {empty} empty: {pieces}",
        )


def test_without_stream_there_is_one_piece(shared_room):
    talk = shared(shared_room)
    for number, text in enumerate(["one two\nthree 你好", "one two", ""]):
        shared_room.probe.say(text, f"Tell text {number}")
        options = {"stream": False} if number == 1 else {}
        pieces = talk.answer(call := ask(f"Tell text {number}", **options))["pieces"]
        require(
            len(pieces) == 1 and isinstance(pieces[0], str),
            "without stream=True there is exactly one piece, also for an empty answer",
            sent=as_call(call),
            expected="1 piece of text",
            got=f"{len(pieces)} pieces: {pieces}",
        )


def test_temperature_0_is_greedy(shared_room):
    talk = shared(shared_room)
    first, second, *_ = shared_room.play(plain_words)
    shared_room.probe.logits({first: 1.0, second: 0.99}, "Be cool")
    asks = [
        ask("Be cool by default", stream=True, max_new_tokens=13),
        ask("Be cool, but warm", stream=True, max_new_tokens=3, temperature=1.0),
        ask("Be cool afterwards", stream=True, max_new_tokens=13, temperature=0.0),
        ask("Be cool at once", max_new_tokens=13, temperature=0),
    ]
    for number, call in enumerate(asks):
        if number == 1:
            talk.finish(talk.begin(call)[0])
            continue
        ids = talk.answer(call)["new_ids"]
        others = sum(id != first for id in ids)
        require(
            len(ids) >= 12 and others == 0,
            "temperature 0 does not always take the likeliest token: it samples",
            sent=as_call(call),
            expected="greedy, whatever the checkpoint's generation_config says (do_sample=False)",
            got=f"{others} of {len(ids)} tokens were not the likeliest",
        )


def test_a_temperature_above_0_samples_at_it(shared_room):
    talk = shared(shared_room)
    first, second, *others = shared_room.play(plain_words)
    rest = {other: 0.0 for other in others}
    # at temperature 10 nine of ten tokens are others than the first, at 1 one of a hundred
    shared_room.probe.logits({first: 8.0, second: 0.0, **rest}, "Draw hot")
    # at 0.2 nearly half are the second and one of a thousand is another, at 1 more than half are
    shared_room.probe.logits({first: 1.9, second: 1.85, **rest}, "Draw cool")
    asks = [
        ask("Draw hot", stream=True, max_new_tokens=21, temperature=10.0),
        ask("Draw hot at once", max_new_tokens=21, temperature=10.0),
        ask("Draw cool", stream=True, max_new_tokens=33, temperature=0.2),
    ]
    drawn = [talk.answer(call)["new_ids"] for call in asks]
    for call, ids in zip(asks, drawn, strict=True):
        seconds, unlikely = ids.count(second), sum(id in others for id in ids)
        if call["options"]["temperature"] > 1:
            right, expected = unlikely >= 6, "about 17 are unlikely ones"
            got = f"{unlikely} are"
        else:
            right = seconds > 0 and unlikely <= 3
            expected = "about 14 are the second likeliest, and hardly any are unlikelier"
            got = f"{seconds} are the second likeliest, {unlikely} unlikelier"
        require(
            right,
            "the tokens are not drawn at the temperature that was asked for"
            if any(id != first for ids in drawn for id in ids)
            else "the temperature is not used: the tokens have to be drawn at it (do_sample=True)",
            sent=as_call(call),
            expected=f"of {len(ids)} tokens {expected}",
            got=got,
        )


def test_text_comes_out_while_the_model_is_held(room):
    talk = Talk(room)
    texts = {
        "English": "Streaming shows each word while the model works.",
        "a list": "Here:\n- one\n- two\n",
        "Chinese": "你好我是一个小模型",
    }
    for name, text in texts.items():
        so_far = room.play(texts_so_far, text=text)
        room.probe.say(text, f"Say it in {name}")
        more = [
            count
            for count in range(2, len(so_far))
            if len(must_be_out(so_far[: count + 1])) > len(must_be_out(so_far[:count]))
        ]
        counts = [more[0], more[-1]]
        room.probe.hold(counts[0] + 1)
        call = ask(f"Say it in {name}", stream=True)
        [number] = talk.begin(call)
        for count in counts:
            room.probe.hold(count + 1)
            talk.until_held(number, count + 1)
            must = must_be_out(so_far[: count + 1])
            if not talk.until("has text", number, must):
                does_not_stream(room, talk, number, count, must, counts[-1])
        room.probe.release()
        talk.finish(number)


def does_not_stream(room, talk, number, count, must, last_count):
    came = _joined(talk.look(number)["pieces"])
    where = room.where() or None
    room.probe.hold(last_count + 1)
    talk.until("has pieces", number, 1, talk.brief_s)
    came_late = _joined(talk.look(number)["pieces"])
    room.probe.release()
    talk.until("ended", number)
    reader = talk.look(number)
    if not reader["end"]:
        require_woken(room, as_call(reader["ask"]))
    facts = {
        "sent": as_call(reader["ask"]),
        "expected": f"{must!r} has come out when the model is held after {count} tokens",
    }
    if came_late:
        mistake = "the stream lags: text that is complete is held back while the model works"
        fail(mistake, got=repr(came), **facts)
    fail(
        "nothing streams: all pieces came after the model had finished"
        if reader["pieces"]
        else "nothing streams: nothing came out while the model was held",
        got=f"nothing; then, with the model let go: {shown(reader)}",
        where=where,
        **facts,
    )


def test_the_event_loop_never_waits_for_the_model(room):
    talk = Talk(room)
    room.probe.say(COUNTING)
    for asks in (
        [ask("Count: streaming", stream=True)],
        [ask("Count: at once", stream=False)],
        [ask("Count: first of two", stream=True), ask("Count: second of two", stream=False)],
    ):
        room.probe.hold(1)
        numbers = talk.begin(*asks)
        for step in (1, 4):
            room.probe.hold(step)
            if len(asks) == 1:
                talk.until_held(numbers[0], step)
            else:  # how two get on together is another test's concern
                talk.until("held", numbers[0], step, talk.brief_s)
            if not talk.turns():
                first = " in its first step" if step == 1 else ""
                talk.blocked(as_call(asks[-1]), f"the model was held{first}")
        room.probe.release()
        for number in numbers:
            talk.until("ended", number)


def test_an_error_in_the_model_reaches_the_reader(room):
    room.probe.say(COUNTING)
    cases = [(1, "RuntimeError", True), (1, "OverflowError", False)]
    cases += [(5, "OverflowError", True), (5, "RuntimeError", False)]
    for step, error, stream in cases:
        talk = Talk(room)  # a handler that has not failed yet
        message = f"broken at step {step}"
        room.probe.fail(step, message, error)
        call = ask(f"Break at {step} with {error}", stream=stream)
        [number] = talk.begin(call)
        reader = talk.finish(number, "the model's error is lost: its reader waits for ever")
        facts = {"sent": as_call(call), "expected": f"{error}: {message}"}
        end = reader["end"]
        if not isinstance(end, dict):
            fail(
                "the model's error is swallowed: the answer ends as if it were complete",
                got=shown(reader),
                **facts,
            )
        require(
            end["raised"][0] == error and end["message"] == message,
            "another error than the model's reaches the reader",
            got=end["said"],
            where=end["where"],
            **facts,
        )


def test_after_an_error_the_next_answer_works(room):
    room.probe.say(COUNTING)
    for step, stream in ((1, True), (3, False)):
        talk = Talk(room)
        room.probe.fail(step)
        [broken] = talk.begin(ask(f"Break at {step}", stream=stream))
        talk.until("ended", broken)
        room.probe.mend()
        mistake = "after an error in the model the next answer does not come"
        [number] = talk.begin(ask(f"Count after {step}", stream=stream))
        require_end(talk.finish(number, mistake), COUNTING, mistake)


def test_a_reader_who_closes_stops_the_model(room):
    talk = Talk(room)
    room.probe.say(LONG)
    room.probe.hold(6)
    [number] = talk.begin({**ask("Count far", stream=True), "stops_after": 2})
    step = max(6, talk.until_two_pieces(number))
    left = talk.close(number)
    room.probe.release()
    next_one_comes(talk, "Then count")
    how = f"aclose() after two pieces, when the model was at step {step}"
    reader = talk.look(number)
    end = reader["end"]
    if left and reader["closing"] and end != "closed":
        kind, said = (end["raised"][0], end["said"]) if isinstance(end, dict) else (end, None)
        fail(
            f"aclose() raises {kind}",
            sent=f"{as_call(reader['ask'])}, then {how}",
            expected="the answer ends there: no error, and no further `yield`",
            got=said,
        )
    stopped(talk, number, step, how, left)


def next_one_comes(talk, prompt):
    """Has the next answer made: its steps give a leaver's steps the time to come."""
    [number] = talk.begin(ask(prompt, stream=True, max_new_tokens=12))
    talk.finish(number, "after a reader has left, the next answer does not come")


def stopped(talk, number, step, how, left):
    """Requires that the model has made no more than two steps after that one. `left`: whether the
    reader was gone before the model went on."""
    reader = talk.look(number)
    if reader["steps"] - step <= MOST_AFTER:
        return
    seen = 0
    while seen < reader["steps"] < 1000:
        seen = reader["steps"]
        time.sleep(0.1)
        reader = talk.look(number)
    sent, steps = f"{as_call(reader['ask'])}, then {how}", reader["steps"] - step
    if not left:
        fail(WAITS, sent=sent, expected=GONE, got=f"{steps} more steps before the reader was gone")
    fail(
        f"the model worked on for {steps} steps after its reader had left ({how.partition(',')[0]})",
        sent=sent,
        expected=f"at most {MOST_AFTER} steps more than the one in progress",
    )


def test_a_cancelled_reader_stops_the_model(room):
    talk = Talk(room)
    room.probe.say(LONG)
    # four steps on end: who looks for a leaver at every fourth token only is late at one of them
    cases = [(f"Count {step}", step, True) for step in (4, 5, 6, 7)] + [("Count at once", 4, False)]
    for prompt, step, stream in cases:
        room.probe.hold(step)
        [number] = talk.begin(ask(prompt, stream=stream))
        talk.until_held(number, step)
        left = talk.cancel(number)
        room.probe.release()
        next_one_comes(talk, f"After step {step}, {stream}")
        how = f"cancellation while it waited, when the model was at step {step}"
        stopped(talk, number, step, how, left)
        if not left:
            break  # leaving waits for the model: another test decides about that


def test_a_reader_who_leaves_the_queue_stops_the_model(room):
    talk = Talk(room)
    room.probe.say(COUNTING)
    room.probe.say(LONG, "Wait")
    room.probe.hold(1)
    [first] = talk.begin(ask("Be first", stream=True))
    talk.until_held(first, 1)
    queued = talk.begin(ask("Wait streaming", stream=True), ask("Wait for it all"))
    wait_in_the_handler(talk)
    left = [talk.cancel(number) for number in queued]
    room.probe.release()
    talk.until("ended", first, None, talk.brief_s)
    next_one_comes(talk, "Be last")
    how = "cancellation while another answer was being made"
    for number, gone in zip(queued, left, strict=True):
        stopped(talk, number, 1, how, gone)


def wait_in_the_handler(talk):
    """Waits until all readers wait for their answers; or as many as can."""
    talk.until("all asked", limit_s=talk.brief_s)
    talk.room.play(loop_turns, limit_s=talk.brief_s)


def test_leaving_does_not_wait_for_the_model(room):
    room.probe.say(LONG)
    for how, stream in (("close", True), ("cancel", True), ("cancel", False)):
        talk = Talk(room)
        room.probe.hold(6)
        call = ask(f"Count, {how}, {stream}", stream=stream)
        [number] = talk.begin({**call, "stops_after": 2} if how == "close" else call)
        if how == "close":
            talk.until_two_pieces(number)
        else:
            talk.until_held(number, 6)
        leave = talk.close if how == "close" else talk.cancel
        if not leave(number, talk.soon_s):
            sent = f"{as_call(call)}, then {'aclose()' if how == 'close' else 'cancellation'}"
            if not talk.turns():
                talk.blocked(sent)
            raise room.hung(WAITS, sent=sent, expected=GONE)
        room.probe.release()


def test_answers_at_once_do_not_mix(room):
    asks = []
    for number, name in enumerate(("red", "green", "blue", "white", "black")):
        # its first tokens are bytes of a character: whose they are, what decodes them has to know
        room.probe.say(f"龘 {name}", f"Say {name}")
        asks.append(ask(f"Say {name}", stream=number % 2 == 0))
    alone, talk = Talk(room), Talk(room)
    texts = [_joined(alone.finish(alone.begin(call)[0])["pieces"]) for call in asks]
    room.probe.hold(1)
    numbers = talk.begin(*asks)
    wait_in_the_handler(talk)
    for step in (2, 3):
        room.probe.hold(step)
        talk.room.play(loop_turns, limit_s=talk.brief_s)
    room.probe.release()
    for number, text in zip(numbers, texts, strict=True):
        reader = talk.finish(number, MIXED)
        sent = f"{as_call(reader['ask'])}, and {len(texts) - 1} others at once"
        require_end(reader, "", MIXED, sent=sent)
        came, expected = _joined(reader["pieces"]), f"{text!r}, as it came when asked alone"
        require(came == text, MIXED, sent=sent, expected=expected, got=shown(reader))


def test_one_leaver_stops_only_its_own(room):
    talk = Talk(room)
    room.probe.say(COUNTING)
    room.probe.hold(3)
    numbers = talk.begin(*[ask(f"Count {number}", stream=number < 3) for number in range(4)])
    talk.until("held", numbers[0], 3, talk.brief_s)
    wait_in_the_handler(talk)
    for number in (numbers[0], numbers[2]):
        talk.cancel(number)
    room.probe.release()
    mistake = "when one reader leaves, another one's answer stops too"
    for number in (numbers[1], numbers[3]):
        reader = talk.finish(number, mistake)
        stops = _solid(COUNTING).startswith(_solid(_joined(reader["pieces"])))
        require_end(reader, COUNTING, mistake if stops else MIXED)


def test_64_streams_at_once_all_finish(room):
    talk = Talk(room, pool=POOL)
    room.probe.say("", "Be quiet")
    room.probe.say("Yes", "Say yes")
    room.probe.hold(1)
    talk.begin(
        *[
            ask(f"{'Say yes' if number % 8 == 0 else 'Be quiet'} {number}.", stream=True)
            for number in range(MANY)
        ]
    )
    wait_in_the_handler(talk)
    room.probe.release()
    if not talk.until("all ended"):
        if not talk.turns():
            talk.blocked(f"{MANY} streams at once", "they were answered")
        require_woken(room, f"{MANY} streams at once")
        ended = sum(reader["end"] is not None for reader in room.play(look_at_all))
        raise room.hung(
            f"{MANY} streams at once hang: the readers fill a thread pool, and the work that they"
            " wait for stands in its queue",
            sent=f"{MANY} streams at once, each being read; the default pool has {POOL} threads",
            expected=f"all {MANY} finish",
            got=f"{ended} have finished, and nothing moves any more",
        )
    for reader in room.play(look_at_all):
        text = "Yes" if "Say yes" in reader["ask"]["prompt"] else ""
        sent = f"{as_call(reader['ask'])}, and {MANY - 1} others at once"
        mistake = f"one of {MANY} streams at once has no whole answer"
        require_end(reader, text, mistake, sent=sent)
