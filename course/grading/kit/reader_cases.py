"""The rules about reading an answer that 2.1 and 3.6 share, each for asks that the test has made.

`talk` is a `Talk` of readers.py; what its room's model says, the test has decided before.
"""

import time

from course.grading.kit.readers import joined, shown, solid
from course.grading.mistakes import fail, require

MOST_AFTER = 2
"""Steps that the model may make after its reader has left, not counting the one in progress."""
MIXED = (
    "concurrent answers get mixed up: data that belongs to one answer is stored where all of them share it (in self?)"
)
WAITS = "a reader cannot leave until the model continues: closing the stream did not finish while the model was paused"
GONE = "the reader leaves at once, and the model stops one step later"


def what_comes_is_an_async_iterator(found, name, sent, needs=("__anext__", "aclose")):
    """`found`: {"type", "has": which of `needs`} of what the method `name` returned."""
    expected = "an async iterator with aclose(), such as the one that an `async def` with `yield` returns"
    if found["type"] == "coroutine":
        fail(
            f"{name} returns a coroutine: `async for` cannot iterate over that",
            sent=sent,
            expected=expected,
            got="a coroutine: an `async def` without `yield`",
        )
    missing = [each for each in needs if each not in found["has"]]
    require(
        not missing,
        f"what {name} returns must support both `async for` and `aclose()`",
        sent=sent,
        expected=expected,
        got=f"{found['type']}, without {', '.join(missing)}",
    )


def does_not_stream(talk, number, count, must, last_count):
    """Fails, and says how: that text had not come when the model was held after `count` tokens."""
    room = talk.room
    came = joined(talk.look(number)["pieces"])
    where = room.where() or None
    room.probe.hold(last_count + 1)
    talk.until("has pieces", number, 1, talk.brief_s)
    came_late = joined(talk.look(number)["pieces"])
    room.probe.release()
    talk.until("ended", number)
    reader = talk.look(number)
    facts = {
        "sent": talk.as_call(reader["ask"]),
        "expected": f"{must!r} has arrived by the time the model is paused after {count} tokens",
    }
    if came_late:
        mistake = "the stream lags: complete text is held back while the model is working"
        fail(mistake, got=repr(came), **facts)
    fail(
        "nothing streams: all pieces arrived after the model had finished"
        if reader["pieces"]
        else "nothing streams: no text arrived while the model was paused",
        got=f"nothing; once the model continued: {shown(reader)}",
        where=where,
        **facts,
    )


def the_event_loop_never_waits(talk, asks):
    """With the asks made at once, and the model held in its first step and later."""
    probe = talk.room.probe
    probe.hold(1)
    numbers = talk.begin(*asks)
    for step in (1, 4):
        probe.hold(step)
        if len(asks) == 1:
            talk.until_held(numbers[0], step)
        else:  # how two get on together is another test's concern
            talk.until("held", numbers[0], step, talk.brief_s)
        if not talk.turns():
            first = " in its first step" if step == 1 else ""
            talk.blocked(talk.as_call(asks[-1]), f"the model was paused{first}")
    probe.release()
    for number in numbers:
        talk.until("ended", number)


def next_one_comes(talk, ask):
    """Has the next answer made: its steps give a leaver's steps the time to come."""
    [number] = talk.begin(ask)
    talk.finish(number, "after a reader has left, the next answer never arrives")


def settled_reader(talk, number):
    """The reader, when the model makes no more steps for it."""
    reader = talk.look(number)
    seen = -1
    while seen < reader["steps"] < 1000:
        seen = reader["steps"]
        time.sleep(0.1)
        reader = talk.look(number)
    return reader


def stopped(talk, number, step, how, left):
    """Requires that the model has made no more than two steps after that one. `left`: whether the
    reader was gone before the model went on."""
    if talk.look(number)["steps"] - step <= MOST_AFTER:
        return
    reader = settled_reader(talk, number)
    sent, steps = f"{talk.as_call(reader['ask'])}, then {how}", reader["steps"] - step
    if not left:
        fail(WAITS, sent=sent, expected=GONE, got=f"{steps} more steps before the reader could leave")
    fail(
        f"the model ran {steps} more steps after its reader had left",
        sent=sent,
        expected=f"at most {MOST_AFTER} more steps after the one in progress",
    )


def closing_stops_the_model(talk, ask, then):
    """The reader of `ask` calls aclose() after two pieces; `then` is asked afterwards."""
    probe = talk.room.probe
    probe.hold(6)
    [number] = talk.begin({**ask, "stops_after": 2})
    step = max(6, talk.until_two_pieces(number))
    left = talk.close(number)
    probe.release()
    next_one_comes(talk, then)
    how = f"aclose() after two pieces, when the model was at step {step}"
    reader = talk.look(number)
    end = reader["end"]
    if left and reader["closing"] and end != "closed":
        kind, said = (end["raised"][0], end["said"]) if isinstance(end, dict) else (end, None)
        fail(
            f"aclose() raises {kind}",
            sent=f"{talk.as_call(reader['ask'])}, then {how}",
            expected="the answer ends there: no error, and no further `yield`",
            got=said,
        )
    stopped(talk, number, step, how, left)


def closing_unread_stops_the_model(talk, ask, then):
    """The reader of `ask` calls aclose() before it has asked for a piece; `then` is asked afterwards."""
    talk.room.probe.hold(1)
    [number] = talk.begin({**ask, "stops_after": 0})
    talk.until_all_wait()
    left = talk.close(number)
    talk.room.probe.release()
    next_one_comes(talk, then)
    stopped(talk, number, 1, "aclose() before the reader had asked for a piece", left)


def cancelling_stops_the_model(talk, ask, step, then):
    """The reader is cancelled while it waits for that step. Returns the reader, the way in which it left, and
    whether it was gone before the model went on."""
    probe = talk.room.probe
    probe.hold(step)
    [number] = talk.begin(ask)
    talk.until_held(number, step)
    left = talk.cancel(number)
    probe.release()
    next_one_comes(talk, then)
    how = f"cancellation while the reader waited, when the model was at step {step}"
    stopped(talk, number, step, how, left)
    return talk.look(number), how, left


def leaving_the_queue_stops_the_model(talk, first, queued, last):
    """The readers of `queued` are cancelled while the answer to `first` is being made."""
    probe = talk.room.probe
    probe.hold(1)
    [number] = talk.begin(first)
    talk.until_held(number, 1)
    numbers = talk.begin(*queued)
    talk.until_all_wait()
    left = [talk.cancel(each) for each in numbers]
    probe.release()
    talk.until("ended", number, None, talk.brief_s)
    next_one_comes(talk, last)
    for each, gone in zip(numbers, left, strict=True):
        stopped(talk, each, 1, "cancellation while another answer was being generated", gone)


def leaving_does_not_wait(talk, ask, how):
    """`how`: "close" or "cancel"."""
    probe = talk.room.probe
    probe.hold(6)
    [number] = talk.begin({**ask, "stops_after": 2} if how == "close" else ask)
    if how == "close":
        talk.until_two_pieces(number)
    else:
        talk.until_held(number, 6)
    leave = talk.close if how == "close" else talk.cancel
    if not leave(number, talk.soon_s):
        sent = f"{talk.as_call(ask)}, then {'aclose()' if how == 'close' else 'cancellation'}"
        if not talk.turns():
            talk.blocked(sent)
        raise talk.room.hung(WAITS, sent=sent, expected=GONE)
    probe.release()


def one_after_another(talk, asks):
    """The texts of the answers."""
    return [joined(talk.finish(talk.begin(ask)[0])["pieces"]) for ask in asks]


def answers_at_once_do_not_mix(talk, asks, texts):
    """`texts`: the answers, as they came one after another."""
    probe = talk.room.probe
    probe.hold(1)
    numbers = talk.begin(*asks)
    talk.until_all_wait()
    for step in (2, 3):
        probe.hold(step)
        talk.turns(talk.brief_s)
    probe.release()
    for number, text in zip(numbers, texts, strict=True):
        reader = talk.finish(number, MIXED)
        sent = f"{talk.as_call(reader['ask'])}, and {len(texts) - 1} others at the same time"
        talk.require_end(reader, "", MIXED, sent=sent)
        came, expected = joined(reader["pieces"]), f"{text!r}, as when it is the only request"
        require(came == text, MIXED, sent=sent, expected=expected, got=shown(reader))


def one_leaver_stops_only_its_own(talk, asks, text):
    """Of four asks that are answered with the text, the first and the third are cancelled."""
    talk.room.probe.hold(3)
    numbers = talk.begin(*asks)
    talk.until("held", numbers[0], 3, talk.brief_s)
    talk.until_all_wait()
    for number in (numbers[0], numbers[2]):
        talk.cancel(number)
    talk.room.probe.release()
    mistake = "when one reader leaves, another reader's answer stops too"
    for number in (numbers[1], numbers[3]):
        reader = talk.finish(number, mistake)
        stops = solid(text).startswith(solid(joined(reader["pieces"])))
        talk.require_end(reader, text, mistake if stops else MIXED)


def all_at_once_finish(talk, asks, what, pool):
    """`what` they are called; `pool`: how many threads the default pool has. One that is to "Say yes" is answered
    with Yes, all others with nothing."""
    probe, many = talk.room.probe, len(asks)
    probe.say("", "Be quiet")
    probe.say("Yes", "Say yes")
    probe.hold(1)
    talk.begin(*asks)
    talk.until_all_wait()
    probe.release()
    if not talk.until("all ended"):
        if not talk.turns():
            talk.blocked(f"{many} concurrent {what}", "the requests were being answered")
        ended = sum(reader["end"] is not None for reader in talk.look_at_all())
        raise talk.room.hung(
            f"{many} concurrent {what} hang: the readers fill a thread pool, and the work they"
            " wait for is stuck in its queue",
            sent=f"{many} concurrent {what}, each being read; the default pool has {pool} threads",
            expected=f"all {many} finish",
            got=f"{ended} have finished, and the rest are stuck",
        )
    for reader in talk.look_at_all():
        text = "Yes" if "Say yes" in reader["ask"]["prompt"] else ""
        sent = f"{talk.as_call(reader['ask'])}, and {many - 1} others at the same time"
        talk.require_end(reader, text, f"one of {many} concurrent {what} got an incomplete answer", sent=sent)
