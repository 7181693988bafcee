"""2.1: the model handler, read inside the room by readers that the tests steer from outside.

The model is held, stepped, broken and told what to say; a test decides by what each reader has got
until then, by how many steps the model made, and by whether the readers' event loop still turns.
"""

import asyncio
import inspect
import re
import sys
import threading

import pytest

from course.grading.kit import reader_cases as reading
from course.grading.kit.readers import Readers, Talk, joined, plain_end, shown
from course.grading.kit.settings import CASES, FLAT, MOST_TOKENS, is_made_of, obeyed, wanted, with_ids
from course.grading.kit.tokenizers import NAMED_ROLES, merge_newlines, template_ids
from course.grading.mistakes import fail, require

MANY = 64
MANY_WORDS = 2000
POOL = 6
COUNTING = "one two three four five six"
LONG = " ".join([COUNTING] * 12)


# in the room


def parts(inside):
    """(model, tokenizer) without layers. The tokenizer merges newlines as Qwen's own does, so that a
    prompt that was encoded piece by piece has other ids."""
    if "parts" not in inside.kept:
        model, tokenizer = inside.tiny_without_layers
        inside.probe.tokenizer = merge_newlines(tokenizer)
        inside.kept["parts"] = model, inside.probe.tokenizer
        inside.kept["template"] = tokenizer.chat_template
    return inside.kept["parts"]


def generation_config(inside, settings):
    """That of most chat models, which sample, and these settings."""
    from transformers import GenerationConfig

    model, tokenizer = parts(inside)
    ends = model.generation_config.eos_token_id
    most = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    made = GenerationConfig(**most, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    made.update(**with_ids(tokenizer, settings))
    return made


def open_readers(answer, inside, pool=None, settings=None):
    def make():
        model, tokenizer = parts(inside)
        model.generation_config = generation_config(inside, settings or {})
        tokenizer.chat_template = inside.kept["template"]
        return answer.ModelHandler(model, tokenizer)

    def call(handler, ask):
        return handler.generate(ask["prompt"], **ask["options"])

    inside.kept["readers"] = Readers(inside, make, call, pool)


def what_generate_returns(answer, inside):
    """Type and methods of what generate returns, and the default of max_new_tokens."""
    inside.probe.say("Yes.")
    readers = inside.kept["readers"]

    async def returned():  # where it is called in a server, too: on the event loop
        found = []
        for stream in (True, False):
            thing = readers.made.generate("Hello", stream=stream)
            has = [name for name in ("__anext__", "aclose") if hasattr(thing, name)]
            found.append({"type": type(thing).__name__, "has": has})
            if inspect.iscoroutine(thing):
                thing.close()
        return found

    return asyncio.run_coroutine_threadsafe(returned(), readers.loop).result()


def prompt_of(answer, inside, prompt, template=None):
    """{"ids", "text"} of the chat template, and of another one from now on if it is given."""
    _, tokenizer = parts(inside)
    tokenizer.chat_template = template or tokenizer.chat_template
    system = {"role": "system", "content": "You are a helpful assistant."}
    ids = template_ids(tokenizer, [system, {"role": "user", "content": prompt}])
    return {"ids": ids, "text": tokenizer.decode(ids)}


def choose_letters(answer, inside, logits, when):
    """Makes the next token one of these letters, where the prompt contains `when`."""
    inside.probe.logits(with_ids(parts(inside)[1], logits), when)


def say_a_special_token(answer, inside, when):
    """Makes the model say a special token between two sentences, where the prompt contains `when`."""
    _, tokenizer = parts(inside)
    first, last = (tokenizer(text)["input_ids"] for text in ("One, two.", " Three."))
    inside.probe.say_ids([*first, tokenizer.convert_tokens_to_ids("<|endoftext|>"), *last], when)


def note_waits_in_the_loop(answer, inside):
    """Notes in which line of the answer a thread in which an event loop runs waits for another thread."""
    inside.notes.pop("waits", None)
    wait = inside.kept.setdefault("wait", threading.Condition.wait)

    def noted_wait(self, timeout=None):
        # an executor looks for an idle thread with a timeout of 0; a thread that starts is waited for
        starts = sys._getframe(2).f_code is threading.Thread.start.__code__
        if timeout != 0 and not starts and asyncio._get_running_loop() is not None:
            if line := inside.kept["readers"].line_of_the_answer():
                inside.notes.setdefault("waits", line)
        return wait(self, timeout)

    threading.Condition.wait = noted_wait


def texts_so_far(answer, inside, text):
    """What the first 0, 1, 2, ... tokens of the text say."""
    _, tokenizer = parts(inside)
    ids = tokenizer(text)["input_ids"]
    # its decode without what transformers adds, which takes most of the time and changes nothing
    return [tokenizer.backend_tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]


def plain_words(answer, inside):
    """The ids of twenty tokens that are plain words."""
    _, tokenizer = parts(inside)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [id for word, id in vocabulary if re.fullmatch("Ġ[a-z]{3,}", word)][:20]


# what the tests share


def ask(prompt, **options):
    return {"prompt": prompt, "options": options}


def as_call(ask):
    options = "".join(f", {name}={value!r}" for name, value in ask["options"].items())
    return f"generate({ask['prompt']!r}{options})"


def talk_in(room, pool=None, settings=None):
    """Readers of a new handler; `settings`: what the model's generation_config has besides what most have."""
    return Talk(room, open_readers, as_call, pool, settings=settings)


def shared(room):
    """The Talk of a room that tests share."""
    if "talk" not in room.kept:
        room.probe.begin_anew()
        room.kept["talk"] = talk_in(room)
    return room.kept["talk"]


@pytest.fixture
def room(request, shared_room):
    """The shared room, with nothing left in its model of what tests before have done there."""
    failed = request.session.testsfailed
    shared_room.kept.pop("talk", None)
    shared_room.probe.begin_anew()
    yield shared_room
    # what a wrong answer has left behind is not to be found by the next test
    shared_room.spoiled |= request.session.testsfailed > failed


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
        reading.what_comes_is_an_async_iterator(found, "generate", f"handler.generate('Hello', stream={stream})")


def test_the_model_is_given_the_chat_template(room):
    talk = talk_in(room)
    room.probe.say("Yes.")
    asks = [
        ask("What is a token?", stream=True),
        ask("  two blanks\n\n", stream=True),
        ask("\n newlines\n", stream=True),
        ask("你好 👍🏽"),
        ask("word " * MANY_WORDS, stream=True),
        ask("And with another template?", stream=True),
    ]
    for number, call in enumerate(asks):
        template = NAMED_ROLES if number == len(asks) - 1 else None
        expected = room.play(prompt_of, prompt=call["prompt"], template=template)
        reader = talk.finish(talk.begin(call)[0])
        conversations = room.probe.report()["conversations"]
        if len(conversations) <= number:
            talk.require_end(reader)
            fail("generate does not call the model", sent=as_call(call))
        given = conversations[number]
        sent = as_call(call)
        mistake = "the model's input is not the rendered chat template: build its ids with apply_chat_template"
        if len(call["prompt"]) > MANY_WORDS:
            sent = f"generate({MANY_WORDS} words, stream=True)"
            given["prompt"] = given["prompt"].replace("word " * 100, "... ")
            mistake = "a long prompt is truncated: pass the whole prompt to the model"
        elif given["prompt"] == expected["text"]:
            mistake = "the prompt was encoded piece by piece: its text is the template's, but its ids are not"
        elif template:
            mistake = "the prompt does not follow the tokenizer's own chat_template"
        elif "<|im_start|>" not in given["prompt"]:
            mistake = "the model's input has no chat template: build its ids with apply_chat_template"
        elif "helpful assistant" not in given["prompt"]:
            mistake = "the model's input has no system message: the chat template begins with one"
        elif not given["prompt"].endswith("assistant\n"):
            mistake = "the generation prompt is missing: add_generation_prompt=True"
        require(
            given["prompt_ids"] == expected["ids"],
            mistake,
            sent=sent,
            expected=f"{len(expected['ids'])} ids: the template with the system message, the prompt unchanged,"
            " and the generation prompt",
            got=f"{len(given['prompt_ids'])} ids, which decode to {given['prompt']!r}",
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
                fail("the prompt is in the output, too: the answer begins after it (skip_prompt)", **facts)
            if "<|" in said:
                fail("special tokens are in the output: skip_special_tokens=True leaves them out", **facts)
            require(said == text, "the joined pieces are not what the model said", **facts)
    shared_room.play(say_a_special_token, when="Say it marked")
    for stream in (True, False):
        said = talk.answer(call := ask(f"Say it marked, {stream}", stream=stream))["said"]
        require(
            "<|" not in said,
            "special tokens are in the output: skip_special_tokens=True leaves them out",
            sent=f"{as_call(call)}; the model emits a special token mid-answer",
            got=repr(said),
        )
    require_all_for_one_who_pauses(talk, shared_room)


def require_all_for_one_who_pauses(talk, room):
    text, mistake = LONG * 2, "a reader that pauses does not get the whole answer: what it has not read yet is lost"
    room.probe.say(text, "Read slowly")
    [number] = talk.begin({**ask("Read slowly", stream=True, max_new_tokens=999), "pauses_after": 1})
    talk.until("ended", number, None, 0.2)  # until the model has ended, or waits for its reader
    talk.close(number)
    talk.require_end(talk.finish(number, mistake), text, mistake)


def test_max_new_tokens_counts_new_tokens(shared_room):
    talk = shared(shared_room)
    so_far = shared_room.play(texts_so_far, text=LONG * 4)
    shared_room.probe.say(LONG * 4, "Count:")
    asks = [
        ask("Count: 260", stream=True, max_new_tokens=260),
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
            "the answer does not have max_new_tokens tokens: the limit counts new tokens only",
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
                "some characters are broken: a token may end inside one, so it cannot be decoded alone",
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
            mistake = "a character that max_new_tokens cuts in two appears broken: leave it out"
            if said.startswith("\ufffd"):
                mistake = "the rest of one answer's cut-off character turns up in the next answer"
            require("\ufffd" not in said, mistake, **facts)
            require(expected in said, "whole characters before the cut-off one are lost", **facts)
            # one who counts otherwise has more of the text: that is another test's concern
            texts = [cut.rstrip("\ufffd") for cut in so_far[count:]]
            require(
                any(plain_end(said).endswith(text) for text in texts),
                "something appears in place of the cut-off character: leave it out",
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
            "an empty piece is yielded: yield only pieces with text",
            sent=as_call(call),
            expected="no piece is empty, and an empty answer has no pieces",
            got=f"{len(pieces)} pieces, {empty} of them empty: {pieces}",
        )


def test_without_stream_there_is_one_piece(shared_room):
    talk = shared(shared_room)
    for number, text in enumerate(["one two\nthree 你好", "one two", ""]):
        shared_room.probe.say(text, f"Tell text {number}")
        options = {"stream": False} if number == 1 else {}
        pieces = talk.answer(call := ask(f"Tell text {number}", **options))["pieces"]
        require(
            len(pieces) == 1 and isinstance(pieces[0], str),
            "without stream=True, generate should yield exactly one piece, even for an empty answer",
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
            "at temperature 0, generate does not always pick the most likely token: it samples",
            sent=as_call(call),
            expected="the likeliest token at each step,"
            " whatever the checkpoint's generation_config says (do_sample=False)",
            got=f"{others} of {len(ids)} tokens were not the likeliest",
        )


def test_a_temperature_above_0_samples_at_it(shared_room):
    talk = shared(shared_room)
    first, second, *others = shared_room.play(plain_words)
    rest = {other: 0.0 for other in others}
    # at temperature 50 five of six tokens are others than the first, at 10 one of twenty, at 2 none
    shared_room.probe.logits({first: 60.0, second: 0.0, **rest}, "Draw hot")
    # at 0.002 nearly half are the second and one of a thousand is another, at 0.1 most are
    shared_room.probe.logits({first: 0.019, second: 0.0185, **rest}, "Draw cool")
    asks = [
        ask("Draw hot", stream=True, max_new_tokens=21, temperature=50.0),
        ask("Draw hot at once", max_new_tokens=21, temperature=50),
        ask("Draw cool", stream=True, max_new_tokens=33, temperature=0.002),
    ]
    drawn = [talk.answer(call)["new_ids"] for call in asks]
    for call, ids in zip(asks, drawn, strict=True):
        seconds, unlikely = ids.count(second), sum(id in others for id in ids)
        if call["options"]["temperature"] > 1:
            right, expected = unlikely >= 6, "about 17 are unlikely"
            got = f"{unlikely} are"
        else:
            right = seconds > 0 and unlikely <= 3
            expected = "about 14 are the second-likeliest token, and hardly any a less likely one"
            got = f"{seconds} are the second-likeliest token, {unlikely} a less likely one"
        require(
            right,
            "the tokens are not drawn at the given temperature"
            if any(id != first for ids in drawn for id in ids)
            else "the temperature is not used: draw the tokens with do_sample=True",
            sent=as_call(call),
            expected=f"of {len(ids)} tokens, {expected}",
            got=got,
        )
    require(
        drawn[0] != drawn[1],
        "two answers draw the same tokens: if you seed each answer (manual_seed), it is no longer random",
        sent=f"{as_call(asks[0])}, then {as_call(asks[1])}; the logits are the same",
        expected="different tokens each time",
        got=f"{len(drawn[0])} tokens, the same ones twice",
    )
    call = ask("Draw hot, again", stream=True, max_new_tokens=21, temperature=50.0)
    once = talk.answer(call)["new_ids"]
    twice = talk.answer(call)["new_ids"]
    require(
        twice[len(once) :] != once,
        "the same prompt gets the same answer again: with a seed derived from the prompt, it is no longer random",
        sent=f"{as_call(call)}, twice; the logits are the same",
        expected="different tokens each time",
        got=f"{len(once)} tokens, the same ones twice",
    )


def test_the_checkpoints_settings_change_nothing(room):
    for number, (settings, temperature, logits, letters) in enumerate(CASES):
        call = ask(f"Case {number}: go", stream=number % 2 == 0, max_new_tokens=MOST_TOKENS, temperature=temperature)
        room.play(choose_letters, logits=logits, when=call["prompt"])
        reader = begun(talk_in(room, settings=settings), call)
        # what is wrong without the setting too is another test's concern
        if says(reader, letters) or not says(begun(talk_in(room), call), letters):
            continue
        fail(
            obeyed(settings),
            sent=f"{as_call(call)}; the model's generation_config has {settings}; the logits are {logits}",
            expected=wanted(letters),
            got=shown(reader),
        )


def begun(talk, call):
    """Has one ask, and waits until its reader has come to an end, or no further."""
    [number] = talk.begin(call)
    talk.until("ended", number)
    return talk.look(number)


def says(reader, letters):
    return reader["end"] == "end" and is_made_of(joined(reader["pieces"]), letters)


def test_above_0_no_token_is_cut_off(shared_room):
    talk = shared(shared_room)
    shared_room.play(choose_letters, logits=FLAT, when="Draw any")
    call = ask("Draw any letters", stream=True, max_new_tokens=180, temperature=1.0)
    said, last = talk.answer(call)["said"], list(FLAT)[-6:]
    if len(set(said)) < 2:
        return  # nothing is drawn: another test decides about that
    require(
        any(letter in said for letter in last),
        "above temperature 0, the less likely tokens are cut off, as with top_k or top_p",
        sent=f"{as_call(call)}; the logits of {len(FLAT)} letters are nearly equal",
        expected=f"all of the letters, including the last ones: {' '.join(last)}",
        got=said,
    )


def test_text_comes_out_while_the_model_is_held(room):
    talk = talk_in(room)
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
                talk.require_own_thread(number)
                reading.does_not_stream(talk, number, count, must, counts[-1])
        room.probe.release()
        talk.finish(number)


def test_the_event_loop_never_waits_for_the_model(room):
    talk = talk_in(room)
    room.play(note_waits_in_the_loop)
    room.probe.say(COUNTING)
    reading.the_event_loop_never_waits(talk, [ask("Count: streaming", stream=True)])
    reading.the_event_loop_never_waits(talk, [ask("Count: at once", stream=False)])
    two = [ask("Count: first of two", stream=True), ask("Count: second of two", stream=False)]
    reading.the_event_loop_never_waits(talk, two)
    require_no_waits(room, as_call(two[0]))


def require_no_waits(room, sent):
    waits = room.notes().get("waits")
    require(
        waits is None,
        "a blocking call inside async def: the event loop waits for the model's thread, again and again",
        sent=sent,
        expected="await, or a call that does not wait, such as get_nowait()",
        got="a blocking wait in the event loop's own thread",
        where=waits,
    )


def test_an_error_in_the_model_reaches_the_reader(room):
    room.probe.say(COUNTING)
    cases = [(1, "RuntimeError", True), (1, "OverflowError", False)]
    cases += [(5, "OverflowError", True), (5, "RuntimeError", False)]
    for step, error, stream in cases:
        talk = talk_in(room)  # a handler that has not failed yet
        message = f"broken at step {step}"
        room.probe.fail(step, message, error)
        call = ask(f"Break at {step} with {error}", stream=stream)
        [number] = talk.begin(call)
        reader = talk.finish(number, "the model's error is lost: its reader waits forever")
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
            "the error that reaches the reader is not the model's",
            got=end["said"],
            where=end["where"],
            **facts,
        )


def test_after_an_error_the_next_answer_works(room):
    room.probe.say(COUNTING)
    for step, stream in ((1, True), (3, False)):
        talk = talk_in(room)
        room.probe.fail(step)
        [broken] = talk.begin(ask(f"Break at {step}", stream=stream))
        talk.until("ended", broken)
        room.probe.mend()
        mistake = "after an error in the model, the next answer never arrives"
        [number] = talk.begin(ask(f"Count after {step}", stream=stream))
        talk.require_end(talk.finish(number, mistake), COUNTING, mistake)


def test_a_reader_who_closes_stops_the_model(room):
    room.probe.say(LONG)
    reading.closing_stops_the_model(talk_in(room), ask("Count far", stream=True), a_short_one("Then count"))
    reading.closing_unread_stops_the_model(talk_in(room), ask("Count unread", stream=True), a_short_one("At last"))


def a_short_one(prompt):
    return ask(prompt, stream=True, max_new_tokens=12)


def test_a_cancelled_reader_stops_the_model(room):
    talk = talk_in(room)
    room.probe.say(LONG)
    # four steps on end: who looks for a leaver at every fourth token only is late at one of them
    cases = [(f"Count {step}", step, True) for step in (4, 5, 6, 7)] + [("Count at once", 4, False)]
    for prompt, step, stream in cases:
        then = a_short_one(f"After step {step}, {stream}")
        _, _, left = reading.cancelling_stops_the_model(talk, ask(prompt, stream=stream), step, then)
        if not left:
            break  # leaving waits for the model: another test decides about that


def test_a_reader_who_leaves_the_queue_stops_the_model(room):
    room.probe.say(COUNTING)
    room.probe.say(LONG, "Wait")
    queued = [ask("Wait streaming", stream=True), ask("Wait for it all")]
    first, last = ask("Be first", stream=True), a_short_one("Be last")
    reading.leaving_the_queue_stops_the_model(talk_in(room), first, queued, last)


def test_leaving_does_not_wait_for_the_model(room):
    room.probe.say(LONG)
    for how, stream in (("close", True), ("cancel", True), ("cancel", False)):
        reading.leaving_does_not_wait(talk_in(room), ask(f"Count, {how}, {stream}", stream=stream), how)


def test_answers_at_once_do_not_mix(room):
    asks = []
    for number, name in enumerate(("red", "green", "blue", "white", "black")):
        # its first tokens are bytes of a character: whose they are, what decodes them has to know
        room.probe.say(f"龘 {name}", f"Say {name}")
        asks.append(ask(f"Say {name}", stream=number % 2 == 0))
    texts = reading.one_after_another(talk_in(room), asks)
    reading.answers_at_once_do_not_mix(talk_in(room), asks, texts)


def test_one_leaver_stops_only_its_own(room):
    room.probe.say(COUNTING)
    asks = [ask(f"Count {number}", stream=number < 3) for number in range(4)]
    reading.one_leaver_stops_only_its_own(talk_in(room), asks, COUNTING)


def test_64_streams_at_once_all_finish(room):
    names = ["Say yes" if number % 8 == 0 else "Be quiet" for number in range(MANY)]
    asks = [ask(f"{name} {number}.", stream=True) for number, name in enumerate(names)]
    talk = talk_in(room, pool=POOL)
    room.play(note_waits_in_the_loop)
    reading.all_at_once_finish(talk, asks, "streams", POOL)
    require_no_waits(room, f"{MANY} streams at once")
