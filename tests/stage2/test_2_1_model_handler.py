"""2.1: the model handler, read inside the room by readers that the tests steer from outside.

The model is held, stepped, broken and told what to say; a test decides by what each reader has got
until then, by how many steps the model made, and by whether the readers' event loop still turns.
"""

import asyncio
import inspect
import re
import time
from concurrent.futures import ThreadPoolExecutor

from course.grading.mistakes import Hung, fail, require

MANY = 64
POOL = 6
SOON_S = 3.0
"""How long a thing may take that needs milliseconds, before it counts as not happening."""
MOST_AFTER = 2
"""Steps that the model may make after its reader has left, not counting the one in progress."""
COUNTING = "one two three four five six seven eight nine ten eleven twelve"
LONG = " ".join([COUNTING] * 6)
SCRIPTS = {
    "Chinese": "你好，世界！龘𠮷。",
    "kana": "これはペンです。カタカナも",
    "Hangul": "안녕하세요 세계",
    "emoji with modifiers": "👍🏽 👩‍👩‍👧 🇨🇭 ok 👋🏿",
}


# in the room


async def talk(answer, room, asks, pool=None):
    """One handler and its readers, one for each of `asks`, all on one event loop.

    An ask is {"prompt", "options", and if need be "waits": it begins only at the event
    "begin <number>", "template": the tokenizer's chat template from then on, "stops_after": after
    how many pieces it reads no more and waits to be sent away}. The events "leave <number>" and
    "cancel <number>" send a reader away.
    """
    loop = asyncio.get_running_loop()
    if pool:
        loop.set_default_executor(ThreadPoolExecutor(pool))
    notes = room.notes
    readers = [{"asked": False, "pieces": [], "end": None, "left": False} for _ in asks]
    notes.update(beats=0, readers=readers, crashed=None)
    handler = answer.ModelHandler(*room.tiny_of_one_layer)
    leaving = [asyncio.Event() for _ in asks]
    begun = {}

    async def read(number, ask):
        note = readers[number]
        try:
            await read_all(note, ask, leaving[number])
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            note["end"] = room.outcome(raise_, error)

    async def read_all(note, ask, leave):
        thing = None
        try:
            note["asked"] = True
            thing = handler.generate(ask["prompt"], **ask["options"])
            # other forms than the contract's are read as well: one test is about them
            if inspect.isawaitable(thing):
                thing = await thing
            if hasattr(thing, "__aiter__") and not hasattr(thing, "__anext__"):
                thing = aiter(thing)
            while len(note["pieces"]) != ask.get("stops_after"):
                try:
                    piece = await next_of(thing)
                except StopAsyncIteration:
                    note["end"] = "end"
                    return
                note["pieces"].append(room.plain(piece))
            await leave.wait()
            if hasattr(thing, "aclose"):
                await thing.aclose()
            note["end"] = "closed"
            note["left"] = True
        finally:
            del thing

    def begin(number):
        if "template" in asks[number]:
            room.tiny_of_one_layer[1].chat_template = asks[number]["template"]
        begun[number] = asyncio.create_task(read(number, asks[number]))
        begun[number].add_done_callback(lambda task: ended(number, task))

    def ended(number, task):
        note = readers[number]
        note["left"] = True
        note["end"] = note["end"] or "cancelled"
        if not task.cancelled() and task.exception():
            notes["crashed"] = repr(task.exception())

    for number, ask in enumerate(asks):
        if not ask.get("waits"):
            begin(number)
    while True:
        for number in range(len(asks)):
            if number not in begun:
                if room.event(f"begin {number}").is_set():
                    begin(number)
            elif room.event(f"leave {number}").is_set():
                leaving[number].set()
            elif room.event(f"cancel {number}").is_set() and not readers[number]["left"]:
                begun[number].cancel()
                room.event(f"cancel {number}").clear()
        await asyncio.sleep(0.002)
        notes["beats"] += 1


async def next_of(thing):
    if hasattr(thing, "__anext__"):
        return await thing.__anext__()
    try:
        return next(thing)
    except StopIteration:
        raise StopAsyncIteration from None


def raise_(error):
    raise error


async def what_generate_returns(answer, room):
    room.probe.say("Yes.")
    handler = answer.ModelHandler(*room.tiny_of_one_layer)
    found = []
    for stream in (True, False):
        thing = handler.generate("Hello", stream=stream)
        has = [name for name in ("__anext__", "aclose") if hasattr(thing, name)]
        found.append({"type": type(thing).__name__, "has": has})
        if inspect.iscoroutine(thing):
            thing.close()
    return found


def template_ids(answer, room, asks):
    """The ids of the chat template for each of the asks."""
    _, tokenizer = room.tiny_of_one_layer
    system = {"role": "system", "content": "You are a helpful assistant."}
    return [
        tokenizer.apply_chat_template(
            [system, {"role": "user", "content": ask["prompt"]}],
            chat_template=ask.get("template"),
            add_generation_prompt=True,
            return_dict=False,
        )
        for ask in asks
    ]


def texts_so_far(answer, room, texts):
    """For each text: what its first 0, 1, 2, ... tokens say."""
    _, tokenizer = room.tiny_of_one_layer
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        found.append([tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)])
    return found


def let_it_sample(answer, room):
    """Makes the checkpoint's own settings sample, and gives ids of tokens that are plain words."""
    model, tokenizer = room.tiny_of_one_layer
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = True, 0.7, 0.8, 20
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [id for word, id in vocabulary if re.fullmatch("Ġ[a-z]{3,}", word)][:11]


# what the tests share


def ask(prompt, **options):
    """An ask of `talk`: how to call generate."""
    return {"prompt": prompt, "options": options}


def later(ask):
    return {**ask, "waits": True}


def reads_two(ask):
    return {**ask, "stops_after": 2}


def as_call(ask):
    options = "".join(f", {name}={value!r}" for name, value in ask["options"].items())
    return f"generate({ask['prompt']!r}{options})"


class Talk:
    """`talk` in the room, as a test sees and steers it."""

    def __init__(self, room, *asks, pool=None):
        self.room, self.asks = room, asks
        self.playing = room.start(talk, asks=list(asks), pool=pool)
        self.until(lambda: "beats" in room.notes(), room.limit_s)

    def reader(self, number):
        return self.room.notes()["readers"][number]

    def text(self, number):
        return "".join(piece for piece in self.reader(number)["pieces"] if isinstance(piece, str))

    def ended(self, number):
        return self.reader(number)["end"] is not None

    def begin(self, number):
        self.room.set(f"begin {number}")

    def steps(self, number):
        """How many steps the model has made for that reader's prompt."""
        prompt = self.asks[number]["prompt"]
        conversations = self.room.probe.report()["conversations"]
        return sum(each["steps"] for each in conversations if prompt in each["prompt"])

    def new_ids(self, number):
        prompt = self.asks[number]["prompt"]
        conversations = self.room.probe.report()["conversations"]
        return [id for each in conversations if prompt in each["prompt"] for id in each["new_ids"]]

    def until(self, holds, limit_s=SOON_S):
        """Waits until `holds()`; whether it came to be within the limit."""
        end = time.monotonic() + limit_s
        while not holds():
            if self.playing.done():
                self.playing.result()
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def until_held(self, number, step):
        """Waits until that reader's conversation is held before that step."""

        def held():
            return (self.steps(number) >= step and self.room.probe.held) or self.ended(number)

        if not self.until(held, self.room.limit_s):
            self.hangs(number, "the model is not asked for the answer's next step")
        if self.ended(number):
            self.require_text(number, "", "the answer ends too soon")

    def finish(self, number, limit_s=None, mistake="the answer does not come to its end"):
        """Waits until that reader has everything."""
        if not self.until(lambda: self.ended(number), limit_s or self.room.limit_s):
            self.hangs(number, mistake)

    def hangs(self, number, mistake):
        if not self.turns():
            self.blocked(as_call(self.asks[number]))
        reader = self.reader(number)
        raise self.room.hung(mistake, sent=as_call(self.asks[number]), got=shown(reader))

    def answer(self, number, limit_s=None):
        """That reader's whole answer.

        Raises:
            Mistake: it does not come to an end, or with an error.
        """
        self.finish(number, limit_s)
        return self.require_text(number, "", "the answer ends with an error")

    def require_text(self, number, text, mistake, **facts):
        """Requires that the answer came to its end, and with that text at its end."""
        reader = self.reader(number)
        got = {"sent": as_call(self.asks[number]), "got": shown(reader)}
        if isinstance(reader["end"], dict) and reader["end"].get("where"):
            got["where"] = reader["end"]["where"]
        if isinstance(reader["end"], dict):
            mistake = f"generate raises {reader['end']['raised'][0]}: {reader['end']['message']}"
        said = self.text(number)
        require(reader["end"] == "end" and plain_end(said).endswith(text), mistake, **got, **facts)
        return said

    def turns(self):
        """Whether the event loop still turns."""
        begun = self.room.notes()["beats"]
        in_the_loop = self.room.probe.report()["steps_in_a_loop"] > 0
        return self.until(
            lambda: self.room.notes()["beats"] >= begun + 3, 0.5 if in_the_loop else SOON_S
        )

    def blocked(self, call, when="the model was held"):
        fail(
            f"a blocking call inside async def: the event loop stood still while {when}",
            sent=call,
            expected="other coroutines go on: the model runs in another thread, and what waits"
            " for it does so with await",
            got="nothing else ran in the event loop",
            where=self.room.where() or None,
        )


def shown(reader):
    """What a reader has got, in one line."""
    pieces, end = reader["pieces"], reader["end"]
    if isinstance(end, dict):
        end = f"{end['raised'][0]}: {end['message']}"
    what = f"{len(pieces)} pieces" if len(pieces) != 1 else "1 piece"
    what += f", joined {short_join(pieces)}" if pieces else ""
    return what + (", then " + {"end": "the end"}.get(end, end) if end else ", and no end")


def short_join(pieces):
    return repr("".join(piece if isinstance(piece, str) else f"<{piece}>" for piece in pieces))


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


def test_generate_returns_an_async_iterator(room):
    for found, stream in zip(room.play(what_generate_returns), (True, False), strict=True):
        sent = f"handler.generate('Hello', stream={stream})"
        expected = "an object with __anext__ and aclose, as an `async def` with `yield` gives"
        if found["type"] == "coroutine":
            fail(
                "generate returns a coroutine: `async for` cannot read that",
                sent=sent,
                expected=expected,
                got="a coroutine: an `async def` without `yield`, or a `return` in its place",
            )
        require(
            found["has"] == ["__anext__", "aclose"],
            "what generate returns cannot be read with `async for` and closed with `aclose()`",
            sent=sent,
            expected=expected,
            got=f"{found['type']}, which has {' and '.join(found['has']) or 'neither'}",
        )


def test_the_model_is_given_the_chat_template(room):
    room.probe.say("Yes.")
    template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    asks = [
        later(ask("What is a token?", stream=True)),
        later(ask("  two blanks\n\n", stream=True)),
        later(ask("你好 👍🏽")),
        {**later(ask("And with another template?", stream=True)), "template": template},
    ]
    expected = room.play(template_ids, asks=asks)
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        talk.begin(number)
        talk.finish(number)
        conversations = room.probe.report()["conversations"]
        if len(conversations) <= number:
            talk.answer(number)
            fail("generate does not ask the model", sent=as_call(call))
        given = conversations[number]
        mistake = "the model is not given the chat template: apply_chat_template makes its ids"
        if "template" in call:
            mistake = "the prompt does not follow the tokenizer's own chat_template"
        elif "helpful assistant" not in given["prompt"]:
            mistake = "the model is given no system line: the chat template begins with one"
        elif not given["prompt"].endswith("assistant\n"):
            mistake = "the generation prompt is missing: add_generation_prompt=True"
        require(
            given["prompt_ids"] == expected[number],
            mistake,
            sent=as_call(call),
            expected=f"{len(expected[number])} ids: the template with the system line, the prompt"
            " unchanged, and the generation prompt",
            got=f"{len(given['prompt_ids'])} ids, which say {given['prompt']!r}",
        )


def test_the_pieces_are_the_answer(room):
    texts = ["Tokens: one, two.\n\n- three\n  - four", " It is  so . \n"]
    for number, text in enumerate(texts):
        room.probe.say(text, f"text {number}")
    asks = [ask(f"Say text {n}", stream=stream) for n in range(2) for stream in (True, False)]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        text = texts[number // 2]
        said = talk.answer(number)
        facts = {"sent": as_call(call), "expected": repr(text), "got": repr(said)}
        if "helpful assistant" in said or "Say text" in said:
            fail("the prompt comes out too: the answer begins after it (skip_prompt)", **facts)
        if "<|" in said:
            fail("special tokens come out: skip_special_tokens=True leaves them out", **facts)
        require(said == text, "the pieces joined are not what the model said", **facts)


def test_no_character_is_broken(room):
    for name, text in SCRIPTS.items():
        room.probe.say(text, name)
    asks = [ask(f"Say {name}", stream=stream) for name in SCRIPTS for stream in (True, False)]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        text = list(SCRIPTS.values())[number // 2]
        said = talk.answer(number)
        facts = {"sent": as_call(call), "expected": text, "got": said}
        if "\ufffd" in said:
            fail(
                "broken characters: a token can end in the middle of one, so it cannot be decoded"
                " alone",
                **facts,
            )
        require(plain_end(said).endswith(text), "characters are lost on the way", **facts)


def test_a_cut_character_is_left_out(room):
    text = "No 龘👋🏿"
    so_far = room.play(texts_so_far, texts=[text])[0]
    room.probe.say(text)
    asks, expected = [], []
    for count, cut in enumerate(so_far):
        if cut.endswith("\ufffd"):
            for stream in (True, False):
                asks.append(ask(f"Say {count}", stream=stream, max_new_tokens=count))
                expected.append(cut.rstrip("\ufffd"))
    assert asks
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        said = talk.answer(number)
        facts = {"sent": as_call(call), "expected": repr(expected[number]), "got": repr(said)}
        require(
            "\ufffd" not in said,
            "a character that max_new_tokens cuts in two comes out broken: leave it out",
            **facts,
        )
        require(
            plain_end(said).endswith(expected[number].rstrip()),
            "whole characters before the cut one are lost",
            **facts,
        )


def test_no_piece_is_empty(room):
    texts = ["one two\n\nthree", "これは 👍🏽", ""]
    for number, text in enumerate(texts):
        room.probe.say(text, f"text {number}")
    asks = [ask(f"Say text {number}", stream=True) for number in range(len(texts))]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        talk.answer(number)
        pieces = talk.reader(number)["pieces"]
        empty = sum(piece == "" for piece in pieces)
        require(
            not empty,
            "an empty piece comes out: yield only what has text in it",
            sent=as_call(call),
            expected="no piece is empty, and an empty answer has no pieces",
            got=f"{len(pieces)} pieces, of them {empty} empty: {pieces}",
        )
        other = [piece for piece in pieces if not isinstance(piece, str)]
        require(not other, "a piece is not text", sent=as_call(call), got=other[:1])


def test_without_stream_there_is_one_piece(room):
    room.probe.say("one two\nthree 你好", "long")
    room.probe.say("", "empty")
    asks = [ask("Say long"), ask("Say long again", stream=False), ask("Say empty")]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        talk.answer(number)
        pieces = talk.reader(number)["pieces"]
        require(
            len(pieces) == 1 and isinstance(pieces[0], str),
            "without stream=True there is exactly one piece, also for an empty answer",
            sent=as_call(call),
            expected="1 piece",
            got=f"{len(pieces)} pieces: {pieces}",
        )


def test_max_new_tokens_counts_new_tokens(room):
    so_far = room.play(texts_so_far, texts=[LONG * 3])[0]
    room.probe.say(LONG * 3)
    asks = [
        ask("Say it: 1", stream=True, max_new_tokens=1),
        ask("Say it: 7", stream=True, max_new_tokens=7),
        ask("Say it: 7 at once", max_new_tokens=7),
        ask("Say it with the default"),
    ]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        most = call["options"].get("max_new_tokens", 128)
        said = plain_end(talk.answer(number))
        counts = [count for count, text in enumerate(so_far) if said.endswith(text.rstrip())]
        require(
            max(counts, default=0) == most,
            "the answer has another number of tokens than max_new_tokens: it counts new ones only",
            sent=as_call(call),
            expected=f"{most} tokens" + ("" if number < 3 else ", the default"),
            got=f"{max(counts)} tokens" if counts else repr(said),
        )


def test_temperature_0_is_greedy(room):
    first, second, *_ = room.play(let_it_sample)
    room.probe.logits({first: 1.0, second: 0.9})
    asks = [
        later(ask("By default", stream=True, max_new_tokens=24)),
        later(ask("Warm", stream=True, max_new_tokens=6, temperature=1.0)),
        later(ask("Cold", stream=True, max_new_tokens=24, temperature=0.0)),
        later(ask("At once", max_new_tokens=24, temperature=0)),
    ]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        talk.begin(number)
        talk.finish(number)
        if number == 1:
            continue
        talk.answer(number)
        ids = talk.new_ids(number)
        require(
            set(ids) == {first},
            "temperature 0 does not always take the likeliest token: the checkpoint's own settings"
            " sample",
            sent=as_call(call),
            expected="greedy, whatever generation_config says (do_sample=False)",
            got=f"{sum(id != first for id in ids)} of {len(ids)} tokens were not the likeliest",
        )


def test_a_temperature_above_0_samples_at_it(room):
    first, *others = room.play(let_it_sample)
    room.probe.logits({first: 3.0, **{other: 0.0 for other in others}})
    asks = [
        ask("Hot", stream=True, max_new_tokens=61, temperature=5.0),
        ask("Cold", stream=True, max_new_tokens=24, temperature=0.05),
        ask("At once", max_new_tokens=61, temperature=5.0),
    ]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        talk.answer(number)
        ids = talk.new_ids(number)
        rare = sum(id != first for id in ids)
        facts = {
            "sent": as_call(call),
            "got": f"{rare} of {len(ids)} tokens were not the likeliest one",
        }
        if number == 1:
            require(
                rare == 0,
                "the temperature is not used: 0.05 draws as often from the unlikely tokens",
                expected="0: at this temperature the likeliest is all but certain",
                **facts,
            )
        else:
            mistake = "the temperature is not used: at 5.0 the tokens are not drawn at random"
            expected = "about 50 of 60: at this temperature they are nearly as likely"
            require(rare >= 36, mistake, expected=expected, **facts)


def test_text_comes_out_while_the_model_is_held(room):
    texts = {
        "English": "Streaming shows each word while the model works on the next one.",
        "a list": "Here:\n- one\n- two\n- three\n",
        "Chinese": "你好我是一个小模型我们一个字一个字地说",
    }
    so_far = room.play(texts_so_far, texts=list(texts.values()))
    for name, text in texts.items():
        room.probe.say(text, f"in {name}")
    asks = [later(ask(f"Say it in {name}", stream=True)) for name in texts]
    talk = Talk(room, *asks)
    for number, call in enumerate(asks):
        steps = stops(so_far[number])
        room.probe.hold(steps[0] + 1)
        talk.begin(number)
        for count in steps:
            room.probe.hold(count + 1)
            talk.until_held(number, count + 1)
            must = must_be_out(so_far[number][: count + 1])
            if not talk.until(lambda must=must: must in talk.text(number)):
                fail_streaming(room, talk, number, count, must)
        room.probe.release()
        talk.finish(number)


def stops(so_far):
    """Three numbers of tokens after which more has to be out than before."""
    more = [
        count
        for count in range(2, len(so_far))
        if len(must_be_out(so_far[: count + 1])) > len(must_be_out(so_far[:count]))
    ]
    return [more[0], more[len(more) // 2], more[-1]]


def fail_streaming(room, talk, number, count, must):
    call = as_call(talk.asks[number])
    came = talk.text(number)
    where = room.where() or None
    room.probe.release()
    talk.until(lambda: talk.ended(number))
    expected = f"{must!r} had come out when the model was held after {count} tokens"
    if came == "":
        pieces = len(talk.reader(number)["pieces"])
        fail(
            "nothing streams: all pieces came after the model had finished"
            if pieces
            else "nothing streams: nothing has come out while the model was held",
            sent=call,
            expected=expected,
            got=f"nothing until then, and {pieces} pieces after the model had been let go",
            where=where,
        )
    fail(
        "the stream lags: text that is complete is held back while the model works",
        sent=call,
        expected=expected,
        got=repr(came),
    )


def test_the_event_loop_never_waits_for_the_model(room):
    room.probe.say(COUNTING)
    asks = [later(ask(f"Count for {n}", stream=n % 2 == 1)) for n in range(1, 5)]
    talk = Talk(room, *asks)
    for numbers in ([0], [1], [2, 3]):
        room.probe.hold(1)
        for number in numbers:
            talk.begin(number)
        for step in (1, 4):
            room.probe.hold(step)
            when = "the model was held in its first step" if step == 1 else "the model was held"
            talk.until_held(numbers[0], step)
            if not talk.turns():
                talk.blocked(as_call(asks[numbers[-1]]), when)
        room.probe.release()
        for number in numbers:
            talk.finish(number)


def test_an_error_in_the_model_reaches_the_reader(room):
    room.probe.say(COUNTING)
    cases = [(1, "RuntimeError", True), (1, "OverflowError", False)]
    cases += [(5, "OverflowError", True), (5, "RuntimeError", False)]
    asks = [later(ask(f"Break {number}", stream=case[2])) for number, case in enumerate(cases)]
    talk = Talk(room, *asks)
    for number, (step, error, _) in enumerate(cases):
        message = f"broken at step {step}"
        room.probe.fail(step, message, error)
        talk.begin(number)
        call = as_call(asks[number])
        expected = f"{error}: {message}"
        if not talk.until(lambda number=number: talk.ended(number)):
            talk.hangs(number, "the model's error is lost: its reader waits for ever")
        end = talk.reader(number)["end"]
        if not isinstance(end, dict):
            fail(
                "the model's error is swallowed: the answer ends as if it were complete",
                sent=call,
                expected=expected,
                got=shown(talk.reader(number)),
            )
        require(
            end["raised"][0] == error and end["message"] == message,
            "another error than the model's reaches the reader",
            sent=call,
            expected=expected,
            got=f"{end['raised'][0]}: {end['message']}",
            where=end["where"],
        )


def test_after_an_error_the_next_answer_works(room):
    room.probe.say(COUNTING)
    asks = [later(ask(f"Count {number}", stream=number % 2 == 0)) for number in range(4)]
    talk = Talk(room, *asks)
    for step in (1, 3):
        broken, next_one = (0, 1) if step == 1 else (2, 3)
        room.probe.fail(step)
        talk.begin(broken)
        talk.until(lambda broken=broken: talk.ended(broken))
        room.probe.mend()
        talk.begin(next_one)
        mistake = "after an error in the model the next answer does not come"
        talk.finish(next_one, SOON_S, mistake)
        talk.require_text(next_one, COUNTING, mistake, expected=repr(COUNTING))


def test_a_reader_who_closes_stops_the_model(room):
    room.probe.say(LONG)
    asks = [reads_two(ask("Count far", stream=True)), later(ask("Then count", max_new_tokens=12))]
    room.probe.hold(6)
    talk = Talk(room, *asks)
    step = 6
    if not talk.until(lambda: read_two(talk, 0)):
        room.probe.release()  # what does not stream is another test's concern
        talk.until(lambda: read_two(talk, 0))
        step = talk.steps(0)
    room.set("leave 0")
    talk.until(lambda: talk.reader(0)["left"])
    room.probe.release()
    next_one_comes(talk, 1)
    stopped(talk, 0, step, f"aclose() after two pieces, when the model was at step {step}")


def read_two(talk, number):
    return len(talk.reader(number)["pieces"]) == 2 or talk.ended(number)


def next_one_comes(talk, number):
    """Has the next answer made: its steps give a leaver's steps the time to come."""
    talk.begin(number)
    talk.finish(number, mistake="after a reader has left, the next answer does not come")


def stopped(talk, number, step, how):
    """Requires that the model has made no more than two steps after that one."""
    if talk.steps(number) - step <= MOST_AFTER:
        return
    end, seen = time.monotonic() + SOON_S, 0
    while seen < talk.steps(number) and time.monotonic() < end:
        seen = talk.steps(number)
        time.sleep(0.1)
    fail(
        f"the model worked on for {talk.steps(number) - step} steps after its reader had left",
        sent=f"{as_call(talk.asks[number])}, then {how}",
        expected=f"at most {MOST_AFTER} steps more than the one in progress",
    )


def test_a_cancelled_reader_stops_the_model(room):
    room.probe.say(LONG)
    asks = []
    for name, stream in (("streaming", True), ("at once", False)):
        asks.append(later(ask(f"Count {name}", stream=stream)))
        asks.append(later(ask(f"After {name}", stream=stream, max_new_tokens=12)))
    talk = Talk(room, *asks)
    for number in (0, 2):
        room.probe.hold(4)
        talk.begin(number)
        talk.until_held(number, 4)
        room.set(f"cancel {number}")
        talk.until(lambda number=number: talk.reader(number)["left"])
        room.probe.release()
        next_one_comes(talk, number + 1)
        stopped(talk, number, 4, "cancellation while it waited, when the model was at step 4")


def test_a_reader_who_leaves_the_queue_stops_the_model(room):
    room.probe.say(COUNTING)
    room.probe.say(LONG, "Wait")
    asks = [
        ask("Be first", stream=True),
        later(ask("Wait streaming", stream=True)),
        later(ask("Wait for all at once")),
        later(ask("Be last", stream=True)),
    ]
    room.probe.hold(1)
    talk = Talk(room, *asks)
    talk.until_held(0, 1)
    for number in (1, 2):
        talk.begin(number)
    all_asked(talk, 3)
    for number in (1, 2):
        room.set(f"cancel {number}")
        talk.until(lambda number=number: talk.reader(number)["left"])
    room.probe.release()
    talk.finish(0)
    next_one_comes(talk, 3)
    for number in (1, 2):
        stopped(talk, number, 1, "cancellation while another answer was being made")


def test_leaving_does_not_wait_for_the_model(room):
    room.probe.say(LONG)
    asks = [later(reads_two(ask("Count, closed", stream=True)))]
    asks += [later(ask(f"Count, cancelled {n}", stream=n == 1)) for n in (1, 2)]
    talk = Talk(room, *asks)
    for number, how in enumerate(("leave", "cancel", "cancel")):
        room.probe.hold(6)
        talk.begin(number)
        if how == "cancel":
            talk.until_held(number, 6)
        elif not talk.until(lambda: read_two(talk, 0)):
            room.probe.release()  # what does not stream is another test's concern
            talk.until(lambda: read_two(talk, 0))
        room.set(f"{how} {number}")
        if not talk.until(lambda number=number: talk.reader(number)["left"]):
            called = "aclose()" if how == "leave" else "cancellation"
            if not talk.turns():
                talk.blocked(as_call(asks[number]) + f", then {called}")
            raise room.hung(
                f"leaving waits for the model: {called} came to no end while it was held",
                sent=as_call(asks[number]) + f", then {called}",
                expected="the reader is gone at once, and the model stops a step later",
            )
        room.probe.release()


def test_answers_at_once_do_not_mix(room):
    names = ["red", "green", "blue", "white", "black", "brown"]
    texts = {name: " ".join(f"{name} {count}" for count in range(4)) for name in names}
    for name, text in texts.items():
        room.probe.say(text, f"Say {name}")
    asks = [ask(f"Say {name}", stream=n % 2 == 0) for n, name in enumerate(names)]
    room.probe.hold(1)
    talk = Talk(room, *asks)
    all_asked(talk, len(asks))
    room.probe.hold(3)
    talk.until(lambda: room.probe.held == len(asks), 0.1)
    room.probe.release()
    mistake = "answers at once mix: what belongs to one answer is shared by all (an attribute?)"
    for number, name in enumerate(names):
        talk.finish(number, SOON_S, mistake)
        said = plain_end(talk.text(number))
        require(
            talk.reader(number)["end"] == "end" and said.endswith(texts[name]),
            mistake,
            sent=f"{as_call(asks[number])}, and five others at once",
            expected=repr(texts[name]),
            got=shown(talk.reader(number)),
        )


def all_asked(talk, count):
    """Waits until so many readers wait for their answers; or as many as can."""

    def asked():
        return sum(each["asked"] for each in talk.room.notes()["readers"]) >= count

    talk.until(asked, 1.0)
    beats = talk.room.notes()["beats"]
    talk.until(lambda: talk.room.notes()["beats"] > beats + 2 and talk.room.probe.held, 1.0)


def test_one_leaver_stops_only_its_own(room):
    room.probe.say(COUNTING)
    asks = [ask(f"Count {number}", stream=number < 3) for number in range(4)]
    room.probe.hold(4)
    talk = Talk(room, *asks)
    all_asked(talk, len(asks))
    for number in (0, 2):
        room.set(f"cancel {number}")
        talk.until(lambda number=number: talk.reader(number)["left"])
    room.probe.release()
    mistake = "when one reader leaves, another one's answer stops too"
    for number in (1, 3):
        talk.finish(number, SOON_S, mistake)
        talk.require_text(number, COUNTING, mistake, expected=repr(COUNTING))


def test_64_streams_at_once_all_finish(room):
    room.probe.say("Yes")
    asks = [ask(f"Say {number}.", stream=True) for number in range(MANY)]
    room.probe.hold(1)
    talk = Talk(room, *asks, pool=POOL)
    all_asked(talk, len(asks))
    room.probe.release()


    def state():
        readers = room.notes()["readers"]
        return sum(each["end"] is not None for each in readers), room.probe.steps

    while (now := state())[0] < MANY:
        if not talk.until(lambda now=now: state() != now):
            if not talk.turns():
                talk.blocked(f"{MANY} streams at once", "they were answered")
            raise room.hung(
                f"{MANY} streams at once hang: a thread pool is full of readers, and the work that"
                " they wait for stands in the same pool's queue",
                sent=f"{MANY} streams at once, each being read; the default pool has {POOL} threads",
                expected=f"all {MANY} finish",
                got=f"{now[0]} of {MANY} finished, then nothing moved",
            )
    for call, reader in zip(asks, room.notes()["readers"], strict=True):
        require(
            reader["end"] == "end" and plain_end("".join(reader["pieces"])).endswith("Yes"),
            f"one of {MANY} streams at once has no whole answer",
            sent=f"{as_call(call)}, and {MANY - 1} others at once",
            expected="'Yes'",
            got=shown(reader),
        )
