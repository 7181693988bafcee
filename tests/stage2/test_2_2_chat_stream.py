"""2.2: an answer as server-sent events, over a real socket, around a handler of the test's own."""

import asyncio
import gc
import re
import unicodedata

import pytest

from course.grading.kit.cases import NO_OBJECTS, NOT_FINITE, TEXTS, WRONG_PROMPTS, note_sleeps
from course.grading.kit.http import facts
from course.grading.kit.scripted_handler import Model, Remembered, ScriptedHandler
from course.grading.kit.sse import Stream, Unread
from course.grading.mistakes import fail, require

ENDS = ("done", "error")

WAIT_S = 3.0
"""For what a free machine does in milliseconds; COURSE_LIMIT_S raises the limit of whole tests."""

ERRORS = ["RuntimeError", "ValueError", "KeyError", "ConnectionResetError", "OutOfTokens"]
"""What the model raises; the last one is a class of its own."""

LONG = 60
"""Pieces of an answer that nobody waits for."""

BIG = 8
"""Pieces of 1 MB: no connection holds so many without a client that reads."""

TRACEBACK = re.compile(r'Traceback|File \\?"|\.py\\?", line')
"""In JSON, its quotes are escaped."""


# in the room


def app(answer, inside, **script):
    """The answer's app around a scripted handler."""
    return answer.create_app(ScriptedHandler(inside, **script))


def app_with_big_pieces(answer, inside):
    """An app whose answer to "big" begins with BIG of them, and is never collected as garbage."""
    pieces = ["word " * 200_000] * BIG + ["word "] * LONG
    return answer.create_app(Remembered(inside, answers={"big": pieces}, held=["big"]))


def collect(answer, inside):
    """Generators of the answer's own that are in a circle are closed when they are collected."""
    gc.collect()


def app_with_sleeps_noted(answer, inside, **script):
    """As `app`. Notes sleeps that delay a stream: any in the server's event loop, and those of a
    task that asks for pieces."""
    sleeps, call_later = note_sleeps(inside), asyncio.BaseEventLoop.call_later

    def noted_call_later(loop, delay, callback, *args, **kwargs):
        # this callback is asyncio.sleep's own, under whatever name that was imported
        if getattr(callback, "__name__", "") == "_set_result_unless_cancelled":
            if asyncio.current_task(loop) in inside.kept["script"].readers:
                sleeps.append(f"asyncio.sleep({delay:g}) between two pieces")
        return call_later(loop, delay, callback, *args, **kwargs)

    asyncio.BaseEventLoop.call_later = noted_call_later
    return app(answer, inside, **script)


# what the tests share


def asked(prompt, **more):
    return {"prompt": prompt, **more}


def tokens(stream):
    """The events that may be pieces. Their exact form is the concern of two tests."""
    return [event for event in list(stream.events) if event.name not in ENDS]


def named(stream, name):
    return [event for event in list(stream.events) if event.name == name]


def pieces_of(stream, most):
    """The events that may be pieces, without an end in another form than `done` that follows
    `most` of them."""
    found = tokens(stream)
    while len(found) > most:
        data = found[-1].json
        if found[-1].data.strip() != "[DONE]" and (not isinstance(data, dict) or "token" in data):
            break
        found.pop()
    return found


def come(stream, pieces):
    """How many of these pieces have come, one after the other, in whatever form."""
    place = 0
    for count, piece in enumerate(map(str.strip, pieces)):
        place = stream.text.find(piece, place)
        if place < 0:
            return count
        place += len(piece)
    return len(pieces)


def require_blank_lines(stream):
    """Requires an event, where there are the lines of one."""
    require(
        bool(stream.events) or not stream.unfinished,
        "no event arrived: each event ends with a blank line",
        expected='data: {"token": "Hello"}\n\n',
        got=stream.text,
    )


def skip_if_limited(room, stream):
    """A server elsewhere may have the limit of exercise 2.3 in front of it, and that is no mistake."""
    if room.elsewhere and stream.status == 429:
        pytest.skip("the server limits how often one may ask (429): wait a minute, or set its COURSE_LIMIT higher")


def accepted(room, stream):
    """Requires that the answer has begun with a 200."""
    if not stream.begun():
        raise room.hung("POST /chat_stream got no answer")
    skip_if_limited(room, stream)
    if stream.status != 200:
        mistake, reply = "POST /chat_stream does not return 200", stream.reply()
        if stream.status == 422:
            mistake = "POST /chat_stream refuses a valid body"
        if stream.status == 422 and '"query"' in reply.text:
            mistake += ": prompt, max_new_tokens and temperature are fields of one JSON body"
        fail(mistake, sent=stream.sent, **facts(room, reply))


def whole(room, stream):
    """The Reply of an answer that is to be an unbroken stream with status 200."""
    accepted(room, stream)
    return stream.reply()


# the tests


def test_each_piece_is_an_event(shared_room):
    pieces = ["Hello", ",", " world", "!", "!"]
    url = shared_room.serve(app, answers={"hi": pieces})
    stream = Stream(shared_room, url, asked("hi"))
    reply = whole(shared_room, stream)
    kind = reply.headers.get("content-type", "")
    require(
        kind.split(";")[0].strip().lower() == "text/event-stream",
        "the content type is not text/event-stream: browsers would not read it as events",
        expected="text/event-stream",
        got=kind or "no content type",
    )
    require_blank_lines(stream)
    found = tokens(stream) if shared_room.elsewhere else pieces_of(stream, len(pieces))
    if not found:
        fail(
            "no event arrived: an event is a line that begins with `data:`, followed by a blank line",
            got=reply.text,
        )
    first = found[0]
    require(
        first.name == "",
        "a piece is sent as a named event: a browser's onmessage gets only events without a name",
        expected='data: {"token": "Hello"}\n\n',
        got=str(first),
    )
    if shared_room.elsewhere:
        for event in found:
            data = event.json
            require(
                isinstance(data, dict) and list(data) == ["token"] and isinstance(data["token"], str),
                "the data of a piece is not the expected JSON: its text under `token`, and nothing else",
                sent=asked("hi"),
                expected='{"token": "a text"}',
                got=event.data,
            )
        return
    require(
        first.json == {"token": "Hello"},
        "the data of a piece is not the expected JSON: its text under `token`, and nothing else",
        sent="the handler's first piece: Hello",
        expected='{"token": "Hello"}',
        got=first.data,
    )
    require(
        [event.json for event in found] == [{"token": piece} for piece in pieces],
        "the events are wrong: each piece should be one event, in order, with no others in between",
        expected=pieces,
        got="".join(map(str, found)),
    )


def test_any_text_survives(shared_room):
    stream = Stream(shared_room, shared_room.serve(app, answers={"hi": TEXTS}), asked("hi"))
    whole(shared_room, stream)
    require_blank_lines(stream)
    found = tokens(stream)
    for number, piece in enumerate(TEXTS):
        sent = f"the handler's piece {number + 1} of {len(TEXTS)}: {piece!r}"
        if number >= len(found):
            fail(
                f"the piece {piece!r} is lost: the answer ends without it",
                sent=sent,
                got=f"{len(found)} pieces, and then {stream.events[-1]}",
            )
        event = found[number]
        text = event.json.get("token") if isinstance(event.json, dict) else event.data
        if text == piece:
            continue
        later = TEXTS[number + 1 :]
        mistake = f"the piece {piece!r} is changed on the way"
        if event.json is None:
            mistake += ": its data is not JSON. json.dumps is one way to write it"
        elif len(found) < len(TEXTS) and text in later:
            mistake = f"the piece {piece!r} is lost: a later one arrives in its place"
        elif later and text == piece + later[0]:
            mistake = f"the pieces {piece!r} and {later[0]!r} arrive as one event"
        elif unicodedata.normalize("NFC", str(text)) == unicodedata.normalize("NFC", piece):
            fail(f"{mistake}: it only looks the same", expected=ascii(piece), got=ascii(text))
        fail(mistake, sent=sent, expected=repr(piece), got=repr(text))


def test_done_says_how_many_pieces_there_were(shared_room):
    answers = {"first": ["ab", "c", "def"], "second": ["g", "hi"]}
    url = shared_room.serve(app, answers=answers)
    for prompt, pieces in answers.items():
        stream = Stream(shared_room, url, asked(prompt))
        reply = whole(shared_room, stream)
        require_blank_lines(stream)
        # that each of the handler's pieces is one event is another test's concern
        count = len(tokens(stream) if shared_room.elsewhere else pieces_of(stream, len(pieces)))
        expected = f'event: done\ndata: {{"pieces": {count}}}\n\n'
        done = named(stream, "done")
        if not done:
            require(
                not stream.unfinished,
                "the last event does not count: it, too, must end with a blank line",
                expected=expected,
                got=reply.text[-60:],
            )
            fail(
                "the stream ends without `event: done`: the client cannot tell whether it is complete",
                expected=expected,
                got=reply.text,
            )
        require(
            len(done) == 1 and stream.events[-1].name == "done",
            "`done` is not the last event, or there is more than one `done`",
            got=reply.text,
        )
        data = done[0].json
        mistake = "`pieces` in `done` is not the number of pieces that were sent"
        require(
            isinstance(data, dict) and type(data.get("pieces")) is int and data["pieces"] == count,
            mistake if prompt == "first" else f"{mistake}: start again from 0 for each answer",
            sent=f"this app's {prompt} answer has {count} pieces",
            expected=f'data: {{"pieces": {count}}}',
            got=f"data: {done[0].data}",
        )
    if not shared_room.elsewhere:
        count_while_another_streams(shared_room)


def count_while_another_streams(room):
    pieces = ["one ", "two ", "three "]
    url, model = room.serve(app, answers={"first": pieces}, held=["first"]), Model(room)
    first = Stream(room, url, asked("first"))
    model.begun(first, "first")
    model.let("first")
    first.wait(lambda: len(tokens(first)) >= 1, 1.0)
    second = Stream(room, url, asked("second"))
    if not second.ended(WAIT_S):
        return  # that streams wait for each other is another test's concern
    model.let("first", None)
    counts = {}
    for which, stream in {"first": first, "second": second}.items():
        whole(room, stream)
        done = named(stream, "done")
        counts[which] = done[0].json.get("pieces") if done and done[0].json else None
    require(
        list(counts.values()) == [len(tokens(first)), len(tokens(second))],
        "`pieces` in `done` counts another stream's pieces too: keep the count in the request, not in the app",
        sent="a second request arrives while the first one's answer is streaming",
        expected=f"pieces: {len(tokens(first))} and {len(tokens(second))}",
        got=f"pieces: {counts['first']} and {counts['second']}",
    )


def test_no_pieces_is_an_answer_too(shared_room):
    stream = Stream(shared_room, shared_room.serve(app, answers={"hi": []}), asked("hi"))
    if not stream.begun():
        raise shared_room.hung("POST /chat_stream got no answer", sent="a handler whose answer has no pieces")
    reply = stream.reply()
    require(
        reply.status == 200,
        "for an answer without pieces, the status is not 200",
        expected='200 and event: done, data: {"pieces": 0}',
        **facts(shared_room, reply),
    )
    done = named(stream, "done")
    # that `done` comes at all, and its form, have a test of their own
    pieces = done[0].json.get("pieces") if done and isinstance(done[0].json, dict) else 0
    require(
        not pieces_of(stream, 0) and not named(stream, "error") and not pieces,
        "for an answer without pieces, the stream is not just a `done` with 0 pieces",
        expected='event: done\ndata: {"pieces": 0}\n\n',
        got=reply.text,
    )


def test_each_piece_is_sent_as_soon_as_it_is_there(shared_room):
    pieces = ["one ", "two ", "three ", "four "]
    url = shared_room.serve(app_with_sleeps_noted, answers={"hi": pieces}, held=["hi"])
    stream, model = Stream(shared_room, url, asked("hi")), Model(shared_room)
    model.begun(stream, "hi")
    for number in range(1, len(pieces) + 1):
        if not model.asked("hi", number, WAIT_S):
            break  # with the pieces that are there, it waits for nothing: it has ended
        model.let("hi")
        if stream.wait(lambda count=number: len(tokens(stream)) >= count, WAIT_S):
            continue
        where = shared_room.where() or None
        came, text_came = len(tokens(stream)), come(stream, pieces) >= number
        model.let("hi")
        late = stream.wait(lambda count=came: len(tokens(stream)) > count, 0.5)
        if late and number < len(pieces):
            fail(
                "each piece arrives late: it is sent only when the next one is ready",
                expected=f"piece {number} arrives while the model is working on piece {number + 1}",
                got=f"{came} pieces",
                where=where,
            )
        model.let("hi", None)
        stream.ended(WAIT_S)
        if text_came and not stream.events:
            break  # that nothing ends an event is another test's concern
        require(bool(tokens(stream)), "no event arrived at all", got=str(stream))
        fail(
            "nothing streams: all pieces arrived after the model had finished"
            if came == 0
            else f"after {came} pieces, nothing more arrived until the model had finished",
            expected=f"piece {number} arrives while the model is working on piece {number + 1}",
            got=f"{came} pieces by then, and {len(tokens(stream))} at the end",
            where=where,
        )
    model.let("hi", None)
    whole(shared_room, stream)
    sleeps = shared_room.notes()["sleeps"]
    if sleeps:
        blocking = "time.sleep" in sleeps[0]
        fail(
            "a blocking call inside async def: time.sleep stops the event loop and every stream"
            if blocking
            else "the stream sleeps between its pieces: send each one as soon as it is ready",
            expected="no sleep: the handler's pieces arrive at the model's own pace",
            got=sleeps[0],
        )


def test_streams_do_not_wait_for_each_other(shared_room):
    answers = {"first": ["first "] * 4, "second": ["second "] * 4}
    url = shared_room.serve(app, answers=answers, held=["first"])
    model = Model(shared_room)
    first = Stream(shared_room, url, asked("first"))
    model.begun(first, "first")
    for came in (0, 1):
        if came:  # who answers one stream after the other may do so from the first piece on
            model.let("first")
            first.wait(lambda: come(first, ["first"]) == 1, 1.0)
        second = Stream(shared_room, url, asked("second"))
        ended = second.ended(WAIT_S)
        require(
            "second" not in first.text,
            "streams get mixed up: one client's pieces reached another client",
            sent=[asked("first"), asked("second")],
            got=str(first),
        )
        if not ended:
            shared_room.turns()  # says so if the event loop is blocked
            raise shared_room.hung(
                "one stream waits for another: the second client got no answer while the first one's model was paused",
                expected="each client gets its pieces as its own model produces them",
            )
        whole(shared_room, second)
    model.let("first", None)
    whole(shared_room, first)


def test_an_error_before_the_first_piece_is_no_stream(shared_room):
    for error in ERRORS:
        # an app for each: that an error costs the next request its place is another test's concern
        url = shared_room.serve(app, fails={"hi": [0, 'the "GPU" is gone', error]})
        sent = f"a handler whose model raises {error} before its first piece"
        stream = Stream(shared_room, url, asked("hi"))
        if not stream.ended(WAIT_S):
            raise shared_room.hung("when the model fails before its first piece, no answer arrives", sent=sent)
        if stream.broken:
            raise shared_room.broken(
                "when the model fails before its first piece, the connection breaks: answer with a 500",
                sent=sent,
            )
        reply = stream.reply()
        if not Model(shared_room).talks():
            fail("POST /chat_stream does not call the handler", **facts(shared_room, reply))
        require(
            400 <= reply.status < 600,
            f"the model failed before its first piece, but the status is {reply.status}: wait for"
            " that piece before you start the response"
            if error == ERRORS[0]
            else f"a {error} before the first piece gets the status {reply.status}: the model may raise any Exception",
            sent=sent,
            expected="a 4xx or 5xx",
            got=str(reply),
            where=shared_room.last_error()[1],
        )
        require(
            not reply.headers.get("content-type", "").startswith("text/event-stream"),
            f"a {reply.status} is sent as an event stream: answer with JSON or plain text",
            sent=sent,
            got=reply.headers.get("content-type", ""),
        )
        require(
            not TRACEBACK.search(reply.text),
            "the response shows a traceback: that belongs in the server's log",
            sent=sent,
            got=f"{reply.status} with a traceback in its body",
        )


def test_an_error_after_the_first_piece_is_an_event(shared_room):
    message = 'the "GPU" is gone:\n\\\\host\\gpu0\r\n\ndata: {}'
    expected = 'two pieces, then event: error\ndata: {"message": "..."}\n\n, then the end'
    for error in ERRORS:
        # an app for each, as above
        script = {"answers": {"hi": ["one ", "two "]}, "fails": {"hi": [2, message, error]}}
        stream = Stream(shared_room, shared_room.serve(app, **script), asked("hi"))
        sent = f"a handler whose model raises {error} after two pieces: {message!r}"
        accepted(shared_room, stream)
        ended, errors = stream.ended(WAIT_S), named(stream, "error")
        if not ended:
            raise shared_room.hung(
                "after `event: error`, the stream does not end, so the client waits for more"
                if errors
                else "the model failed after two pieces, but the stream neither says so nor ends",
                sent=sent,
                got=str(stream),
            )
        require_blank_lines(stream)
        where = shared_room.last_error()[1]
        if error != ERRORS[0]:
            mistake = f"no `event: error` is sent for a {error}: the model may raise any Exception"
        elif stream.broken:
            mistake = "the model failed after two pieces, but the stream breaks off without `event: error`"
        else:
            mistake = "the model failed after two pieces, but no `event: error` reports it"
        require(bool(errors), mistake, sent=sent, expected=expected, got=str(stream), where=where)
        data = errors[0].json
        said = data.get("message") if isinstance(data, dict) else None
        require(
            isinstance(said, str) and said.strip() != "",
            "the data of the error event is not JSON with a `message`: json.dumps is one way to write it",
            sent=sent,
            expected='data: {"message": "..."}',
            got=f"data: {errors[0].data}",
        )
        require(
            not TRACEBACK.search(errors[0].data),
            "the error event shows a traceback: that belongs in the server's log",
            sent=sent,
            got="an error event with a traceback in its message",
        )
        require(
            not named(stream, "done"),
            "a `done` follows an error: it tells the client that the answer is complete, which it is not",
            sent=sent,
            expected=expected,
            got=str(stream),
        )
        require(
            len(errors) == 1 and stream.events[-1].name == "error" and len(tokens(stream)) == 2,
            "when the model fails, the events are wrong: send the pieces so far, one `event: error`, then nothing",
            sent=sent,
            expected=expected,
            got=str(stream),
        )
        require(
            not stream.broken,
            "after the error event, the stream breaks instead of ending: do not raise anything once it has been sent",
            sent=sent,
            expected=expected,
            got="the connection broke before the whole answer had arrived",
            where=where,
        )


def test_after_an_error_the_next_request_works(room):
    fails = {"before": [0, "no"], "after": [1, "no"]}
    url = room.serve(app, answers={"after": ["one ", "two "]}, fails=fails)
    for prompt in ("fine 1", "before", "fine 2", "after", "fine 3"):
        stream = Stream(room, url, asked(prompt))
        if prompt in fails:
            # how an error is told, and that the stream then ends, are other tests' concerns
            stream.wait(lambda stream=stream: named(stream, "error"), WAIT_S)
            continue
        if not stream.ended(WAIT_S):
            mistake = "a request gets no answer"
            if prompt != "fine 1":
                mistake = "after an error in the model, the next request gets no answer"
            raise room.hung(mistake, sent=asked(prompt), got=str(stream))
        if prompt == "fine 1":
            accepted(room, stream)
        require(
            stream.status == 200 and come(stream, ["re: ", prompt]) == 2 and not stream.broken,
            "the pieces of an answer do not arrive"
            if prompt == "fine 1"
            else "after an error in the model, the next request does not get a normal answer",
            sent=asked(prompt),
            expected=f"200 and the pieces of 're: {prompt}'",
            got=str(stream),
            where=room.last_error()[1],
        )


def require_stopped(model, after, most=3):
    require(
        after <= most,
        f"the model ran {after} more steps after the client had left",
        expected=f"at most {most} steps: close what generate returned, or cancel its reader",
        got=f"{after} steps for an answer that no one reads",
    )


def test_the_model_stops_when_the_client_leaves(room):
    url = room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"])
    model = Model(room)
    stream = Stream(room, url, asked("hi"))
    model.begun(stream, "hi")
    model.let("hi")
    # a stream that does not stream is another test's concern
    stream.wait(lambda: come(stream, ["word"]) == 1, 1.0)
    stream.leave_and_be_missed()
    require_stopped(model, model.steps_after_leaving("hi", LONG))
    room.wait(
        lambda: model.talk("hi")["left"],
        "the client left, but the handler was never told: it keeps the answer open forever",
        WAIT_S,
        expected="close what generate returned (aclose), or cancel its reader",
    )
    leave_without_having_read(room)


def leave_without_having_read(room):
    """While the server cannot send, nothing waits for a piece: a cancellation does not reach the handler."""
    url = room.serve(app_with_big_pieces)
    model = Model(room)
    client = Unread(room, url, asked("big"))
    if not model.asked("big", limit_s=WAIT_S):
        raise room.hung("POST /chat_stream never asks the handler for a piece", sent=client.sent)
    model.let("big", BIG)
    taken = 0
    while taken < (taken := model.talk("big")["asked"]):
        room.turns(500)
    client.leave_and_be_missed()
    room.play(collect)
    room.turns()
    steps = model.steps_after_leaving("big", LONG)
    sent = "a client that does not read, and leaves after many pieces: `send` waits for it"
    expected = "what generate returned is closed, whatever else still refers to it: await pieces.aclose()"
    require(
        steps <= 3 and model.talk("big")["left"],
        "`aclose` is never called on what generate returned: when the client leaves during a"
        " send, the model keeps working",
        sent=sent,
        expected=expected,
        got=f"{steps} steps for an answer that no one reads" if steps else "it was not closed",
    )


def test_the_model_stops_when_the_client_left_early(room):
    url = room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"])
    model = Model(room)
    stream = Stream(room, url, asked("hi"))
    model.begun(stream, "hi")
    stream.leave_and_be_missed()
    steps = model.steps_after_leaving("hi", LONG)
    # the first piece may come; the steps count from there
    require_stopped(model, max(0, steps - 1))
    room.wait(
        lambda: model.talk("hi")["left"],
        "the client left before the first piece, but the handler was never told",
        WAIT_S,
        expected="close what generate returned (aclose), even if no stream ever starts",
    )


def test_who_leaves_disturbs_no_other(room):
    answers = {prompt: [f"{prompt}{number} " for number in (1, 2, 3)] for prompt in "xyz"}
    url = room.serve(app, answers=answers, held=["x", "y"])
    model = Model(room)
    streams = {}
    for prompt in "xy":
        stream = streams[prompt] = Stream(room, url, asked(prompt))
        if not model.asked(prompt, limit_s=WAIT_S):
            continue  # that streams wait for each other is another test's concern
        model.let(prompt)
        stream.wait(lambda stream=stream, prompt=prompt: come(stream, answers[prompt]) >= 1, 1.0)
    leaves, stays = streams.values()
    # that a second client is refused, and that streams mix, are other tests' concerns, too
    refused = stays.status not in (None, 200)
    mixed = come(leaves, answers["y"]) > 0
    leaves.leave_and_be_missed()
    model.let("x", None)
    model.let("y", None)
    streams["z"] = Stream(room, url, asked("z"))
    for prompt, who in (("y", "another client that was still connected"), ("z", "the next client")):
        stream, pieces = streams[prompt], answers[prompt]
        if stream is stays and (refused or mixed):
            continue
        if not stream.ended(WAIT_S):
            raise room.hung(f"one client left, and {who} got an incomplete answer", got=str(stream))
        require(
            stream.status == 200 and come(stream, pieces) == 3 and not stream.broken,
            f"one client left, and {who} did not get all of its pieces",
            expected=pieces,
            got=str(stream),
            where=room.last_error()[1],
        )


WRONG_BODIES = {
    **WRONG_PROMPTS,
    '{"prompt": true}': "a prompt that is true",
    '{"prompt": {"text": "hi"}}': "a prompt that is an object",
    '{"prompt": "hi", "max_new_tokens": [5]}': "a max_new_tokens that is a list",
    '{"prompt": "hi", "temperature": -1}': "a temperature of -1",
    "prompt=hi": "a body that is not JSON",
    '{"prompt": "hi"': "a body that is not JSON",
    **NO_OBJECTS,
}


NO_BODIES = {
    b"[" * 100_000: "a body that is nested too deeply",
    b'{"prompt": ' + b"[" * 100_000: "a body that is nested too deeply",
    b'{"prompt": "\xff\xfe"}': "a body that is not UTF-8",
}


def test_a_wrong_body_is_422(shared_room):
    url = shared_room.serve(app)
    accepted(shared_room, Stream(shared_room, url, asked("a right body")))

    def answer(body, what):
        stream = Stream(shared_room, url, body)
        if not stream.ended(WAIT_S):
            raise shared_room.hung(f"{what}: no answer arrived", sent=stream.sent)
        if stream.broken:
            raise shared_room.broken(f"{what}: the connection breaks", sent=stream.sent)
        skip_if_limited(shared_room, stream)
        return stream, facts(shared_room, stream.reply())

    for body, what in WRONG_BODIES.items():
        stream, came = answer(body.encode(), what)
        require(
            stream.status == 422,
            f"{what} does not get a 422: the sender should learn that the body is wrong",
            sent=stream.sent,
            expected=422,
            **came,
        )
    for body, what in NO_BODIES.items():
        stream, came = answer(body, what)
        require(
            stream.status in (400, 422),
            f"{what} does not get a 422: the sender should learn that the body is wrong",
            sent=stream.sent,
            expected="422, or FastAPI's own 400",
            **came,
        )
    for number in NOT_FINITE:
        # FastAPI's own 422 repeats the number, which is no JSON, and becomes a 500
        stream, came = answer(f'{{"prompt": "hi", "temperature": {number}}}'.encode(), number)
        require(
            stream.status in (400, 422, 500),
            f"a temperature of {number} is accepted: it should be a finite number of at least 0",
            sent=stream.sent,
            expected="422, or FastAPI's own 500",
            **came,
        )
    if shared_room.elsewhere:
        return
    steps = sum(talk["steps"] for talk in Model(shared_room).talks() if talk["prompt"] != "a right body")
    require(
        steps == 0,
        "an invalid body still makes the model run: check the whole body before you call the handler",
        expected="0 steps",
        got=f"{steps} steps",
    )


def test_what_is_asked_reaches_the_handler(shared_room):
    url = shared_room.serve(app)
    cases = [
        (asked("just this"), 128, 0),
        (asked(' 你好\n"\\ 👍🏽 ', max_new_tokens=7, temperature=0.75), 7, 0.75),
        (asked("least", max_new_tokens=1, temperature=0), 1, 0),
        (asked("a whole number", max_new_tokens=100, temperature=1), 100, 1),
    ]
    model = Model(shared_room)
    for number, (body, max_new_tokens, temperature) in enumerate(cases, 1):
        stream = Stream(shared_room, url, body)
        accepted(shared_room, stream)
        stream.reply()
        model.require_asked(body, number, max_new_tokens, temperature)
    url = shared_room.serve(app, answers={"hi": ["first"]})
    shared_room.serve(app, answers={"hi": ["second"]})
    stream = Stream(shared_room, url, asked("hi"))
    reply = whole(shared_room, stream)
    require(
        "second" not in reply.text,
        "an app asks another app's handler: keep it in create_app, not in the module",
        sent="a request to an app, after create_app was called once more, with another handler",
        expected='data: {"token": "first"}',
        got=reply.text,
    )
