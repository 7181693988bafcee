"""2.4: a conversation over a WebSocket, over a real socket, around a handler of the test's own."""

import asyncio
import gc
import json
import re
import time

from course.grading.kit.cases import NOT_FINITE, TEXTS, WRONG_PROMPTS, note_sleeps
from course.grading.kit.scripted_handler import Model, Remembered
from course.grading.kit.websocket import Client, Closed
from course.grading.mistakes import Hung, fail, require

WAIT_S = 3.0
"""For what a free machine does in milliseconds."""

LONG = 60
"""Pieces of an answer that nobody waits for."""

STOP = {"type": "stop"}

WRONG_FRAMES = {
    "hi": "a frame that is not JSON",
    '{"prompt": "hi"': "a frame that is not JSON",
    "": "an empty frame",
    '["prompt"]': "a JSON list",
    '"prompt"': "a JSON string",
    "5": "a JSON number",
    "null": "null",
    '{"type": "dance"}': "a frame of an unknown type",
    '{"type": ["stop"]}': "a frame whose type is a list",
    '{"type": "dance", "prompt": "hi"}': "a prompt in a frame of an unknown type",
    '{"type": "", "prompt": "hi"}': "a prompt in a frame whose type is an empty string",
    "[" * 100_000: "a frame of 100,000 [ characters",
    **WRONG_PROMPTS,
    **{f'{{"prompt": "hi", "temperature": {number}}}': f"a temperature of {number}" for number in NOT_FINITE},
}


# in the room


def app(answer, inside, **script):
    """The answer's app around a scripted handler."""
    return create_app(answer, Remembered(inside, **script))


def create_app(answer, handler):
    # the tests share a room: what an answer keeps in its module is to be found by one of them only
    answer.__spec__.loader.exec_module(answer)
    return answer.create_app(handler)


def one_more_app(answer, inside, **script):
    """As `app`, made by the same module as the one before."""
    return answer.create_app(Remembered(inside, **script))


def app_that_may_sleep(answer, inside, **script):
    """As `app`; notes what blocks the server's event loop with time.sleep."""
    note_sleeps(inside)
    return create_app(answer, Remembered(inside, **script))


def app_with_the_model(answer, inside):
    """The answer's app around the reference handler and the tiny Qwen."""
    handler = inside.solution("stage2/model_handler.py").ModelHandler(*inside.tiny_without_layers)
    return create_app(answer, handler)


def collect(answer, inside):
    """What was never awaited or retrieved is logged when it is collected."""
    gc.collect()


def died(answer, inside):
    """The errors that ended tasks of the answer's, if nobody has asked the task for its result."""
    errors = [
        inside.describe(each.exception())
        for each in gc.get_objects()
        if isinstance(each, asyncio.Task) and getattr(each, "_log_traceback", False)
    ]
    return [{"error": each["said"], "where": each["where"]} for each in errors if each["where"]]


# what the tests share


def connect(room, url):
    client = Client(room, url, "/ws")
    client.log_before = room.output()
    # a client that is forgotten has left, and leaving is for the tests of it
    room.kept.setdefault("clients", []).append(client)
    return client


def closed(client, end, mistake, **facts):
    """The Mistake that the server has closed a connection that should have lived on."""
    room, code = client.room, end.code
    room.turns()
    error, where = room.last_error() if room.output() != client.log_before else (None, None)
    how = f"it was closed with code {code}"
    if code == 1006:
        how = "it broke off without a close frame (1006)"
    facts["got"] = how + (f"; in the server's log: {error}" if error else "")
    fail(mistake, where=where, **facts)


def hung(room, mistake, **facts):
    """A Hung; where a task of the answer's has died unseen, it says of what."""
    found = room.hung(mistake, **facts)
    if not (errors := room.play(died)):
        return found
    facts |= {"got": f"a task ended with {errors[-1]['error']}", "where": errors[-1]["where"]}
    return Hung(mistake, detail=found.detail, **facts)


def next_frame(client, mistake, **facts):
    """The next frame, which has to come."""
    try:
        frame = client.frame(WAIT_S)
    except Closed as end:
        closed(client, end, f"{mistake}: the connection ended", **facts)
    if frame is None:
        raise hung(client.room, mistake, **facts)
    return frame


def answers(client, count=1, what="the answer to the prompt never finished"):
    """The frames up to the `done` of so many answers: a list for each, `done` included."""
    found = [[]]
    while len(found) <= count:
        sent = f"{count} prompts" if count > 1 else None
        frame = next_frame(client, what, sent=sent, expected="token frames and then done")
        found[-1].append(frame)
        if frame.get("type") == "done":
            found.append([])
    return found[:-1]


def texts(frames):
    return [frame.get("text") for frame in frames if frame.get("type") == "token"]


def begin(client, model, prompt, pieces=1):
    """Asks, lets the held model make so many pieces, and reads them."""
    client.send({"prompt": prompt})
    if not model.asked(prompt, limit_s=WAIT_S):
        raise hung(client.room, "the handler is never asked for a piece", sent={"prompt": prompt})
    model.let(prompt, pieces)
    # who asks for the next piece has sent the ones before; whether that is so has a test of its own
    model.asked(prompt, pieces + 1, WAIT_S)
    client.room.turns()
    frames = []
    while len(frames) < pieces and (frame := client.frame(0.1)):
        frames.append(frame)
    return frames


def require_whole(frames, pieces, mistake, **facts):
    """Requires that these frames are all the tokens of an answer, and a done frame that does not say stopped."""
    require(
        texts(frames) == pieces and frames[-1].get("stopped") is not True,
        mistake,
        expected=f'{json.dumps(pieces, ensure_ascii=False)} and a done frame without "stopped": true',
        got=list(frames),
        **facts,
    )


def require_stopped(steps, event, remedy):
    require(
        steps <= 3,
        f"the model ran {steps} more steps after {event}",
        expected=f"at most 3 steps: {remedy}",
        got=f"{steps} steps for an answer that no one reads",
    )


LEFT = "when the client leaves, cancel the task that answers, and call aclose() on what generate returned"


# the tests


def test_each_piece_is_a_token_frame(shared_room):
    room = shared_room
    pieces = ["Hello", ", ", "world", "!"]
    client = connect(room, room.serve(app, answers={"hi": pieces}))
    client.send({"prompt": "hi"})
    for number, piece in enumerate(pieces, 1):
        frame = next_frame(client, "a prompt was sent, but no frame arrived", sent={"prompt": "hi"})
        require(
            frame.get("type") == "token" and frame.get("text") == piece,
            "a piece is not sent as its own frame of type `token`, with its text"
            if frame.get("type") == "token"
            else 'a piece is not a frame of type "token"',
            sent=f"the handler's piece {number}: {piece}",
            expected={"type": "token", "text": piece},
            got=frame,
        )


def test_done_says_how_many_pieces_there_were(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"hi": ["a", "b", "c"]}))
    client.send({"prompt": "hi"})
    done = answers(client, what="no done frame arrives after the last piece")[0][-1]
    require(
        type(done.get("pieces")) is int and done["pieces"] == 3,
        "`pieces` in `done` is not the number of pieces that were sent",
        sent="an answer of 3 pieces",
        expected={"type": "done", "pieces": 3, "stopped": False},
        got=done,
    )
    require(
        done.get("stopped") is False,
        "this answer was not stopped, but its `done` says otherwise",
        expected={"type": "done", "pieces": 3, "stopped": False},
        got=done,
    )


def test_each_piece_is_sent_as_soon_as_it_is_there(shared_room):
    room = shared_room
    pieces = ["one ", "two ", "three ", "four "]
    url = room.serve(app, answers={"hi": pieces}, held=["hi"])
    client, model = connect(room, url), Model(room)
    client.send({"prompt": "hi"})
    for number in range(1, len(pieces) + 1):
        if not model.asked("hi", limit_s=WAIT_S):
            raise hung(room, "the handler is never asked for a piece", sent={"prompt": "hi"})
        model.let("hi")
        try:
            if client.frame(WAIT_S):
                continue
            where = room.where() or None
            blocks = is_blocked(room, url)
            model.let("hi")
            late = client.frame(0.5)
            room.spoiled = True
        except Closed as end:
            closed(client, end, "the connection ended mid-answer")
        mistake = "nothing streams: no piece arrived while the model was still working"
        if blocks:
            mistake = "a blocking call inside async def: nothing is sent while the model is working"
        elif late:
            mistake = "each piece arrives late: it is sent only when the next one is ready"
        fail(
            mistake,
            expected=f"piece {number} arrives while the model is working on piece {number + 1}",
            got=f"{number - 1} pieces",
            where=where,
        )


def is_blocked(room, url):
    try:
        Client(room, url, "/ws", limit_s=0.5)
    except AssertionError:
        return True
    return False


def test_connections_do_not_wait_for_each_other(shared_room):
    room = shared_room
    url = room.serve(app_that_may_sleep, held=["first"])
    model = Model(room)
    first, second = connect(room, url), connect(room, url)
    begin(first, model, "first", pieces=0)
    second.send({"prompt": "second"})
    frames = []
    while not frames or frames[-1].get("type") != "done":
        waits = "one connection waits for another: the second got no answer while the first one's"
        frames.append(next_frame(second, f"{waits} model was paused"))
    model.let("first", None)
    both = [texts(frames), texts(answers(first)[0])]
    require(
        both == [["re: ", "second"], ["re: ", "first"]],
        "the answers of two connections get mixed up: send a frame only to the client that asked",
        expected=[["re: ", "second"], ["re: ", "first"]],
        got=both,
    )
    sleeps = room.notes()["sleeps"]
    require(
        not sleeps,
        "a blocking call inside async def: time.sleep stops the event loop and every connection",
        expected="no sleep at all, or await asyncio.sleep",
        got=sleeps[0] if sleeps else None,
    )


def test_any_text_survives(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"hi": TEXTS}))
    client.send({"prompt": "hi"})
    for number, piece in enumerate(TEXTS, 1):
        frame = next_frame(client, f"the piece {piece!r} did not arrive", expected=repr(piece))
        require(
            frame.get("text") == piece,
            f"the piece {piece!r} is changed on the way",
            sent=f"the handler's piece {number}: {piece!r}",
            expected={"type": "token", "text": piece},
            got=frame,
        )


def test_no_pieces_is_an_answer_too(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"hi": []}))
    client.send({"prompt": "hi"})
    frames = answers(client, what="an answer without pieces does not get a done frame")[0]
    # the form of `done` has a test of its own
    require(
        len(frames) == 1 and not frames[0].get("pieces"),
        "for an answer without pieces, the frames are not just a done frame with 0 pieces",
        expected={"type": "done", "pieces": 0, "stopped": False},
        got=list(frames),
    )


def test_what_is_asked_reaches_the_handler(shared_room):
    room = shared_room
    odd = ' 你好\n"\\ 👍🏽 '
    client = connect(room, room.serve(app, answers={odd: ["ok"]}))
    cases = [
        ({"prompt": "just this"}, 128, 0),
        ({"prompt": odd, "max_new_tokens": 7, "temperature": 0.75}, 7, 0.75),
        ({"prompt": "least", "max_new_tokens": 1, "temperature": 0}, 1, 0),
        ({"prompt": "a whole number", "max_new_tokens": 200, "temperature": 1}, 200, 1),
    ]
    model = Model(room)
    for number, (frame, max_new_tokens, temperature) in enumerate(cases, 1):
        client.send(frame)
        came = next_frame(client, "a prompt was sent, but no frame arrived", sent=frame)
        require(came.get("type") != "error", "a valid prompt is refused", sent=frame, got=came)
        while came.get("type") != "done":
            came = next_frame(client, "a prompt does not get a done frame", sent=frame)
        model.require_asked(frame, number, max_new_tokens, temperature)
    url = room.serve(app, answers={"hi": ["first"]})
    room.serve(one_more_app, answers={"hi": ["second"]})
    client = connect(room, url)
    client.send({"prompt": "hi"})
    frame = next_frame(client, "a prompt was sent, but no frame arrived", sent={"prompt": "hi"})
    require(
        frame.get("text") != "second",
        "an app asks another app's handler: keep it in create_app, not in the module",
        sent="a prompt to an app, after create_app was called once more, with another handler",
        expected={"type": "token", "text": "first"},
        got=frame,
    )


def test_many_prompts_on_one_connection(shared_room):
    room = shared_room
    client = connect(room, room.serve(app))
    counts = []
    for prompt in ("one", "two", "three", "one"):
        client.send({"prompt": prompt})
        frames = answers(client, what="a later prompt on the same connection was not answered")[0]
        counts.append(frames[-1].get("pieces"))
        require(
            texts(frames) == ["re: ", prompt],
            "a later prompt on the same connection is not answered like the first one",
            sent={"prompt": prompt},
            expected=["re: ", prompt],
            got=list(frames),
        )
    require(
        # what `pieces` is at all has a test of its own
        counts[0] != 2 or counts == [2, 2, 2, 2],
        "`pieces` keeps counting from one answer to the next: start again from 0 for each answer",
        sent="four prompts, each with 2 pieces in its answer",
        expected=[2, 2, 2, 2],
        got=counts,
    )


def test_a_prompt_during_an_answer_waits_its_turn(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"first": ["1", "2", "3"]}, held=["first"]))
    model = Model(room)
    began = begin(client, model, "first")
    prompts = [f"prompt {number}" for number in range(2, 42)]
    for prompt in prompts:
        client.send({"prompt": prompt})
    room.turns()
    model.let("first", None)
    lost = "a prompt that arrived during an answer was lost: it must wait its turn"
    found = answers(client, 1 + len(prompts), lost)
    found[0] = began + found[0]
    expected = [["1", "2", "3"], *(["re: ", prompt] for prompt in prompts)]
    came = [texts(frames) for frames in found]
    mistake = "the answers get mixed up: a prompt that arrives during an answer must wait its turn"
    if sorted(came) == sorted(expected):
        mistake = "the waiting prompts were not answered in order"
    elif came[0] != expected[0] and came[1:] == expected[1:]:
        mistake = "a prompt that arrives during an answer cuts it off: it must wait its turn"
    for answer, texts_that_came in zip(expected, came, strict=True):
        require(
            texts_that_came == answer,
            mistake,
            sent=f"`first` is sent, and during its answer {len(prompts)} more prompts,"
            f" from `{prompts[0]}` to `{prompts[-1]}`",
            expected=answer,
            got=texts_that_came,
        )


def test_stop_ends_the_answer(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"]))
    model = Model(room)
    before = begin(client, model, "hi", pieces=2)
    client.send(STOP)
    room.turns()
    model.steps_after_leaving("hi", LONG)
    model.let("hi", None)
    sent = "stop is sent after 2 pieces, while the model is paused"
    frames = answers(client, what="no done frame arrives after stop")[0]
    after, done = texts(frames), frames[-1]
    require(
        all(frame.get("type") == "token" for frame in before + frames[:-1]),
        "after stop, other frames arrive besides the answer's done frame",
        sent=sent,
        got=list(frames),
    )
    require(
        len(before) + len(after) < LONG,
        "a stop mid-answer was ignored: the answer ran to its end",
        sent=sent,
        expected="at most one more piece, and then done",
        got=f"{len(after)} more pieces, and {json.dumps(done)}",
    )
    require(
        len(after) <= 1,
        f"{len(after)} more pieces arrived after stop: the answer should end at the next piece at the latest",
        sent=sent,
        got=list(frames),
    )
    require(
        done.get("stopped") is True and done.get("pieces") == len(before) + len(after),
        'the done frame of a stopped answer does not say "stopped": true'
        if done.get("stopped") is not True
        else "`pieces` in the done frame of a stopped answer is not the number of pieces that were sent",
        sent=sent,
        expected={"type": "done", "pieces": len(before) + len(after), "stopped": True},
        got=done,
    )


def test_stop_stops_the_model(shared_room):
    room = shared_room
    for waiting in (0, 40):
        client = connect(room, room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"]))
        model = Model(room)
        begin(client, model, "hi", pieces=2)
        for _ in range(waiting):
            client.send({"prompt": "waits"})
        client.send(STOP)
        room.turns()
        steps = model.steps_after_leaving("hi", LONG)
        event, remedy = "stop", "call aclose() on what generate returned, or cancel its reader"
        if waiting:
            event += f", with {waiting} prompts waiting"
            remedy = "the task that listens must not wait for a place in the queue"
        require_stopped(steps, event, remedy)


def test_stop_stops_the_real_model(shared_room):
    client, steps = begin_with_the_model(shared_room)
    client.send(STOP)
    shared_room.turns()
    shared_room.probe.release()
    answers(client, what="no done frame arrives after stop")
    require_stopped(steps(), "stop", "call aclose() on what generate returned")


def begin_with_the_model(room):
    """A client with an answer of the tiny Qwen, held mid-answer, and how many steps it has made
    since, when it makes no more."""
    held = 6
    room.probe.say("word " * 100)
    room.probe.hold(held)
    client = connect(room, room.serve(app_with_the_model))
    client.send({"prompt": "hi"})
    room.wait(lambda: room.probe.held, "the model was never called", WAIT_S)

    def steps():
        before, since = None, time.monotonic()
        while time.monotonic() - since < 0.05:
            room.turns()
            now = room.probe.report()["conversations"][-1]["steps"]
            if now != before:
                before, since = now, time.monotonic()
        return before - held

    return client, steps


def test_after_stop_the_next_prompts_are_answered(shared_room):
    room = shared_room
    stopped = ["first", *LATER_STOPS]
    url = room.serve(app, answers=dict.fromkeys(stopped, ["word "] * LONG), held=stopped)
    client, model = connect(room, url), Model(room)
    began = begin(client, model, "first")
    client.send({"prompt": "waiting"})
    room.turns()
    client.send(STOP)
    room.turns()
    model.steps_after_leaving("first", 3)
    model.let("first", None)
    sent = "a prompt is sent; during its answer, `waiting` and then stop are sent; finally, `later`"
    found = answers(client, 2, "stop also ended a prompt that was still waiting")
    require(
        found[1][-1].get("stopped") is not True,
        "stop also stopped the next answer: when an answer ends, clear the flag that records the stop",
        sent=sent,
        expected=["re: ", "waiting"],
        got=list(found[1]),
    )
    require_whole(
        found[1],
        ["re: ", "waiting"],
        "after stop, a waiting prompt is not answered in full: stop ends only the answer in progress",
        sent=sent,
    )
    client.send({"prompt": "later"})
    frames = answers(client, what="after stop, the connection no longer answers")[0]
    require_whole(frames, ["re: ", "later"], "stop also ends a later answer", sent=sent)
    # whether stop works at all has a test of its own
    if len(texts(began + found[0])) < LONG:
        for prompt, (frames, unheard) in LATER_STOPS.items():
            stop_later(client, model, prompt, frames, unheard)


NEXT = {"prompt": "next"}

LATER_STOPS = {
    "again": ([STOP], "only the first stop on a connection works: it should be possible to stop later answers, too"),
    "twice": ([STOP, STOP], "neither of two stops during an answer works"),
    "changed": ([STOP, NEXT], "a prompt right after stop cancels the stop: the answer in progress goes on"),
    "invalid": (
        [STOP, "no JSON"],
        "an invalid frame right after stop cancels the stop: the answer in progress goes on",
    ),
}
"""{a prompt: (what is sent during its answer, what is wrong if that goes on)}."""


def stop_later(client, model, prompt, frames, unheard):
    """Stops an answer that is not the connection's first, and asks for another one, which is to be whole."""
    began = begin(client, model, prompt)
    for frame in frames:
        client.send(frame)
    client.room.turns()
    model.steps_after_leaving(prompt, 3)
    model.let(prompt, None)
    if NEXT not in frames:
        client.send(NEXT)
    sent = f"after an answer was stopped, another prompt is sent, and during its answer {json.dumps(frames)}"
    stopped, whole = answers(client, 2, "after a later stop, the done frame or the next answer never arrives")
    require(
        len(texts(began + stopped)) < LONG,
        unheard,
        sent=sent,
        expected="at most one more piece, and then done",
        got=f"{len(texts(stopped))} more pieces, and {json.dumps(stopped[-1])}",
    )
    require_whole(whole, ["re: ", "next"], "stop also stopped the next answer", sent=sent)


def test_stop_with_nothing_running_is_ignored(shared_room):
    room = shared_room
    client = connect(room, room.serve(app))
    for prompt in ("first", "second"):
        client.send(STOP)
        room.turns()
        client.send({"prompt": prompt})
        sent = f"stop is sent while nothing is running, and then {json.dumps({'prompt': prompt})}"
        lost = "after a stop with nothing running, no prompt is answered"
        frame = next_frame(client, lost, sent=sent)
        require(
            frame.get("type") != "done" or frame.get("pieces") != 0,
            "a stop with nothing running stopped the next answer",
            sent=sent,
            expected={"type": "token", "text": "re: "},
            got=frame,
        )
        require(
            frame.get("type") == "token",
            "a stop with nothing running is not ignored: it should send no frame and stop nothing",
            sent=sent,
            expected={"type": "token", "text": "re: "},
            got=frame,
        )
        require_whole(
            [frame, *answers(client)[0]],
            ["re: ", prompt],
            "a stop with nothing running stopped the next answer",
            sent=sent,
        )
        room.turns()


def test_stop_stops_no_one_else(shared_room):
    room = shared_room
    pieces = {"mine": ["word "] * LONG, "theirs": ["a ", "b ", "c "]}
    url = room.serve(app, answers=pieces, held=["mine", "theirs"])
    model = Model(room)
    mine, theirs = connect(room, url), connect(room, url)
    begin(mine, model, "mine")
    began = begin(theirs, model, "theirs")
    mine.send(STOP)
    room.turns()
    model.let("theirs", None)
    frames = answers(theirs, what="after a stop on one connection, the answer on another never ends")[0]
    require_whole(
        began + frames,
        pieces["theirs"],
        "a stop on one connection stopped the answer on another",
        sent="stop is sent on one of two connections, while an answer is in progress on each",
    )


def error_frame(client, data, what):
    """The next frame, which has to be an error frame with a message."""
    sent = repr(data) if isinstance(data, bytes) else data
    expected = {"type": "error", "message": "..."}
    try:
        frame = client.frame(WAIT_S)
    except Closed as end:
        ends = f"{what} ends the connection: send an error frame and keep the connection open"
        closed(client, end, ends, sent=sent, expected=expected)
    if frame is None:
        raise hung(client.room, f"{what} does not get an error frame", sent=sent, expected=expected)
    message = frame.get("message")
    require(
        frame.get("type") == "error" and isinstance(message, str) and message != "",
        f"{what} does not get an error frame with a message",
        sent=sent,
        expected=expected,
        got=frame,
    )


def require_just_one_each(client, model, calls=0):
    """Requires that nothing else came, that the model was not asked, that the next prompt works."""
    asked = len(model.talks()) - calls
    require(
        asked == 0,
        "an invalid frame still makes the model run: check the whole frame before you call the handler",
        expected="no call to generate",
        got=f"{asked} calls",
    )
    client.send({"prompt": "right"})
    frame = next_frame(client, "after invalid frames, a valid prompt is not answered")
    require(
        frame.get("type") != "error",
        "an invalid frame gets more than one error frame",
        expected="exactly one error frame for each invalid frame",
        got=frame,
    )
    require_whole(
        [frame, *answers(client)[0]],
        ["re: ", "right"],
        "after invalid frames, a valid prompt is not answered in full",
    )


def test_a_wrong_frame_is_an_error_frame(shared_room):
    room = shared_room
    client, model = connect(room, room.serve(app)), Model(room)
    for data, what in WRONG_FRAMES.items():
        client.send(data)
        error_frame(client, data, what)
    require_just_one_each(client, model)


def test_a_binary_frame_is_an_error_frame(shared_room):
    room = shared_room
    client, model = connect(room, room.serve(app)), Model(room)
    for data in (b'{"prompt": "hi"}', b"\x00\xff\xfe"):
        client.send(data)
        error_frame(client, data, "a binary frame")
    require_just_one_each(client, model)


def test_a_wrong_frame_during_an_answer(shared_room):
    room = shared_room
    client = connect(room, room.serve(app, answers={"hi": list("abcdef")}, held=["hi"]))
    model = Model(room)
    frames = begin(client, model, "hi")
    wrong = ['{"prompt": ""}', "no JSON", b"\x00\xff"]
    sent = "mid-answer: " + ", ".join(repr(data) for data in wrong)
    for data in wrong:
        client.send(data)
        room.turns()
        # where the two are read in turn, the next piece has to come first
        model.let("hi")
        room.turns()
    model.let("hi", None)
    ended = "after an invalid frame mid-answer, the answer does not go on"
    while not frames or frames[-1].get("type") != "done":
        frames.append(next_frame(client, ended, sent=sent))
    rest = [frame for frame in frames if frame.get("type") != "error"]
    require_whole(rest, list("abcdef"), "an invalid frame mid-answer corrupts the answer", sent=sent)
    require(
        len(frames) - len(rest) == 3,
        "invalid frames mid-answer do not get one error frame each while the answer goes on",
        sent=sent,
        expected="3 error frames before done",
        got=frames,
    )
    require_just_one_each(client, model, calls=1)


def test_when_the_model_fails_the_client_is_told(shared_room):
    room = shared_room
    message = 'the "GPU" is gone:\n\\\\host\\gpu0'
    fails = {
        "before": [0, message],
        "after": [2, message],
        "a ValueError": [1, message, "ValueError"],
        "a KeyError": [1, message, "KeyError"],
        "an OSError": [1, message, "ConnectionResetError"],
        "a long message": [1, "out of memory, " * 20],
    }
    waited_for = "a long message"
    url = room.serve(app, answers=dict.fromkeys(fails, ["one ", "two ", "three "]), fails=fails, held=[waited_for])
    model = Model(room)
    for prompt, (count, *_) in fails.items():
        client = connect(room, url)
        client.send({"prompt": prompt})
        sent = f"a model that fails after {count} pieces"
        if prompt == waited_for:
            sent += ", while another prompt is waiting"
            client.send({"prompt": "waits"})
            model.asked(prompt, limit_s=WAIT_S)
            room.turns()
            model.let(prompt, None)
        expected = f"{count} token frames, an error frame, and the close code 1011"
        frames, code = [], None
        try:
            while frame := client.frame(WAIT_S):
                frames.append(frame)
        except Closed as end:
            code = end.code
        got = [*frames, f"close code {code}" if code else "the connection stays open"]
        room.turns()
        facts = {"sent": sent, "expected": expected, "got": got, "where": room.last_error()[1]}
        errors = [frame for frame in frames if frame.get("type") == "error"]
        require(bool(errors), "the model failed, but no error frame says so", **facts)
        require(
            all(frame.get("type") != "done" for frame in frames),
            "the model failed, but a done frame arrives, too, as if the answer were complete",
            **facts,
        )
        said = errors[0].get("message")
        require(
            len(errors) == 1 and isinstance(said, str) and said != "",
            "the model failed, but the client does not get exactly one error frame with a message",
            **facts,
        )
        require(
            frames[-1] is errors[0] and len(texts(frames)) == count == len(frames) - 1,
            "the model failed, and the frames are wrong: send the pieces so far,"
            " then the error frame, and nothing else",
            **facts,
        )
        mistake = f"the model failed, but the close code is {code} instead of 1011"
        if code is None:
            mistake = "the model failed, but the connection stays open: close it with 1011"
        elif code == 1006:
            mistake = "the model failed, and the connection drops without a close frame (1006)"
        require(code == 1011, mistake, **facts)


def test_when_the_model_fails_others_live_on(shared_room):
    room = shared_room
    pieces = {"other": ["a ", "b ", "c "]}
    url = room.serve(app, answers=pieces, held=["other"], fails={"hi": [0, "no"]})
    model = Model(room)
    other = connect(room, url)
    began = begin(other, model, "other")
    failing = connect(room, url)
    failing.send({"prompt": "hi"})
    try:
        while failing.frame(1.0):
            pass
    except Closed:
        pass
    room.turns()
    model.let("other", None)
    frames = answers(other, what="the model failed on one connection, and another connection ended, too")[0]
    require_whole(began + frames, pieces["other"], "the model failed on one connection, and another was affected")
    again = connect(room, url)
    again.send({"prompt": "again"})
    frames = answers(again, what="after the model failed, a new connection gets no answer")[0]
    require_whole(frames, ["re: ", "again"], "after the model failed, a new connection is affected, too")


def steps_after(room, leave, pieces):
    """How many steps the held model makes after a client that has got so many pieces left."""
    client = connect(room, room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"]))
    model = Model(room)
    begin(client, model, "hi", pieces)
    leave(client)
    client.missed()
    return model.steps_after_leaving("hi", LONG)


def test_the_model_stops_when_the_client_leaves(shared_room):
    room = shared_room
    steps = steps_after(room, Client.leave, pieces=1)
    require_stopped(steps, "the client had left", LEFT)


def test_the_model_stops_when_the_connection_breaks(shared_room):
    room = shared_room
    steps = steps_after(room, lambda client: client.vanish(half_a_frame=True), pieces=0)
    require_stopped(steps, "the connection had broken", LEFT)


def test_the_real_model_stops_when_the_client_leaves(shared_room):
    client, steps = begin_with_the_model(shared_room)
    client.leave()
    client.missed()
    shared_room.probe.release()
    require_stopped(steps(), "the client had left", LEFT)


def test_who_leaves_takes_the_waiting_prompts_along(shared_room):
    room = shared_room
    prompts = ["first", "second", "third"]
    pieces = {prompt: ["word "] * LONG for prompt in prompts}
    client = connect(room, room.serve(app, answers=pieces, held=prompts))
    model = Model(room)
    begin(client, model, "first")
    for prompt in prompts[1:]:
        client.send({"prompt": prompt})
    room.turns()
    client.leave()
    client.missed()
    steps = model.steps_after_leaving("first", LONG)
    # of the first answer there is a test of its own
    if steps <= 3:
        for prompt in prompts[1:]:
            room.turns()
            if model.talk(prompt):
                steps += model.steps_after_leaving(prompt, LONG)
        require(
            steps <= 3,
            f"the client left, but the model still spent {steps} steps on waiting prompts",
            expected="at most 3 steps: drop the waiting prompts",
            got=f"{steps} steps for an answer that no one reads",
        )


def test_who_leaves_disturbs_no_other(shared_room):
    room = shared_room
    pieces = {"mine": ["word "] * LONG, "theirs": ["a ", "b ", "c "]}
    url = room.serve(app, answers=pieces, held=["mine", "theirs"])
    model = Model(room)
    mine, theirs = connect(room, url), connect(room, url)
    begin(mine, model, "mine")
    began = begin(theirs, model, "theirs")
    mine.vanish()
    mine.missed()
    model.let("mine", None)
    model.let("theirs", None)
    frames = answers(theirs, what="one client left, and another client's answer did not go on")[0]
    require_whole(began + frames, pieces["theirs"], "one client left, and another client was affected")


def between_two_answers(client, model, held):
    client.send({"prompt": "short"})
    answers(client)


def before_the_first_piece(client, model, held):
    begin(client, model, held, pieces=0)


def during_an_answer(client, model, held):
    begin(client, model, held)


def while_a_prompt_was_waiting(client, model, held):
    begin(client, model, held)
    client.send({"prompt": "short"})


def right_after_an_invalid_frame(client, model, held):
    begin(client, model, held)
    client.send("no JSON", later=True)


def while_frames_were_being_sent(client, model, held):
    client.send({"prompt": "big"})
    next_frame(client, "a prompt was sent, but no frame arrived", sent={"prompt": "big"})


def at_once(client, model, held):
    pass


MOMENTS = [
    at_once,
    between_two_answers,
    before_the_first_piece,
    during_an_answer,
    while_a_prompt_was_waiting,
    right_after_an_invalid_frame,
    while_frames_were_being_sent,
]


def test_no_traceback_when_a_client_leaves(room):
    ways = [(moment, leave) for moment in MOMENTS for leave in (Client.leave, Client.vanish)]
    held = [f"held {number}" for number in range(len(ways))]
    pieces = dict.fromkeys(held, ["word "] * 8) | {"big": ["word " * 4000] * 100}
    url = room.serve(app, answers=pieces, held=held)
    model = Model(room)
    for (moment, leave), prompt in zip(ways, held, strict=True):
        client = connect(room, url)
        moment(client, model, prompt)
        leave(client)
        client.missed()
        # who does not miss the client learns from the next piece that it has left
        if model.talk(prompt):
            model.steps_after_leaving(prompt, LONG)
        room.play(collect)
        require_no_traceback(room, moment, leave)


def require_no_traceback(room, moment, leave):
    room.turns()
    output = room.output()
    if "Traceback (most recent call last)" not in output:
        return
    error, where = room.last_error()
    never = re.search(r"\w+ exception was never retrieved", output)
    fail(
        f"a client left {moment.__name__.replace('_', ' ')}, and the log shows a traceback"
        + (f" ({never[0]})" if never else ""),
        sent="a close frame" if leave is Client.leave else "nothing: the connection broke",
        expected="no traceback: clients leave all the time, and that is not an error",
        got=error,
        where=where,
    )
