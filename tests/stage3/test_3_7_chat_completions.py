"""3.7: the endpoint that OpenAI's client talks to, over a real socket, around a chat model of the test's own."""

import datetime
import functools
import itertools
import json
import re
import time

from course.grading.kit.cases import TEXTS
from course.grading.kit.http import Http, facts
from course.grading.kit.scripted_chat import Chat, ScriptedChat, counts
from course.grading.kit.sse import Stream
from course.grading.mistakes import fail, require

NAME = "tiny-qwen"
PATH = "/v1/chat/completions"
WAIT_S = 3.0
"""For what a free machine does in milliseconds; COURSE_LIMIT_S raises the limit of whole tests."""
LONG = 60
"""Pieces of an answer that nobody waits for."""
MOST_STEPS = 3
"""After a client has left."""
MANY = 64
ERRORS = ["RuntimeError", "KeyError", "OutOfTokens", "TimeoutError", "ConnectionResetError"]
"""What the model raises; the third one is a class of its own."""
PIECES = ["Hello", ", ", "world", "!"]
OVER = "the prompt has 9001 tokens, and the model's window holds 4096"


# in the room


def app(answer, inside, name=None, **script):
    """The answer's app around a scripted chat model. `inside.notes["loads"]` counts the calls of load."""
    inside.notes["loads"] = 0
    chat = ScriptedChat(inside, **script)

    def load():
        inside.notes["loads"] += 1
        return chat

    made = answer.create_app(load, **({"model": name} if name else {}))
    inside.notes["loads in create_app"] = inside.notes["loads"]
    return made


def app_made_yesterday(answer, inside, **script):
    """As `app`; until the first request comes it is yesterday."""
    clock = time.time
    time.time = lambda: clock() - 86_400
    made = app(answer, inside, **script)

    async def today(scope, receive, send):
        if scope["type"] == "http":
            time.time = clock
        await made(scope, receive, send)

    return today


def app_whose_clock_runs(answer, inside, **script):
    """As `app`; whenever the time is asked, a second has passed."""
    clock, calls = time.time, []

    def later():
        calls.append(None)
        return clock() + len(calls)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(later(), tz)

    # under whatever name the answer has imported them
    for place, name, was, now in (
        (time, "time", clock, later),
        (answer, "time", clock, later),
        (datetime, "datetime", datetime.datetime, Later),
        (answer, "datetime", datetime.datetime, Later),
    ):
        if getattr(place, name, None) is was:
            setattr(place, name, now)
    return app(answer, inside, **script)


# what the tests share


def ask(content, **more):
    return {"model": NAME, "messages": [{"role": "user", "content": content}], **more}


WITH_USAGE = {"stream_options": {"include_usage": True}}


def send(room, url, body):
    return Stream(room, url, body, path=PATH)


def names(room):
    """The names that apps are made with; None is the default. A server elsewhere has the one name that it lists."""
    return (None,) if room.elsewhere else (None, "qwen-of-mine")


def right_text(room, got):
    """The text that is right: PIECES, but of a server elsewhere any text."""
    if not room.elsewhere:
        return "".join(PIECES)
    return got if isinstance(got, str) else "a string"


def reply_to(room, url, body):
    """The Reply to this body, whatever it is."""
    return send(room, url, body).reply()


def answer_to(room, url, body):
    """The JSON of an answer in one piece. That it is right in all is other tests' concern."""
    reply = reply_to(room, url, body)
    require_200(room, body, reply)
    require(
        isinstance(reply.data, dict),
        "a non-streamed answer is not a JSON object",
        sent=shown(body),
        got=str(reply),
    )
    return reply.data


def require_200(room, body, reply):
    if reply.status == 200:
        return
    mistake = f"a valid request gets a {reply.status}"
    if reply.status == 404 and "model_not_found" not in reply.text:
        mistake = f"there is no POST {PATH}"
    fail(mistake, sent=shown(body), expected=200, **facts(room, reply))


def streamed(room, url, body):
    """The Stream of an answer, at its end."""
    stream = send(room, url, {**body, "stream": True})
    reply = stream.reply()
    require_200(room, {**body, "stream": True}, reply)
    if stream.unfinished and not stream.events:
        fail("no event arrived: each event ends with a blank line", expected="data: {...}\\n\\n", got=stream.text)
    if not stream.events:
        fail("with `stream: true`, no event arrived: an event is a line that begins with `data:`", got=str(reply))
    return stream


def chunks(stream):
    """What the events hold as JSON objects, errors and [DONE] left out."""
    found = (event.json for event in list(stream.events))
    return [each for each in found if isinstance(each, dict) and "error" not in each]


def choice_of(chunk):
    """A chunk's first choice; {} without one."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def delta_of(chunk):
    delta = choice_of(chunk).get("delta")
    return delta if isinstance(delta, dict) else {}


def text_of(stream):
    contents = [delta_of(chunk).get("content") for chunk in chunks(stream)]
    return "".join(each for each in contents if isinstance(each, str))


def message_of(answer):
    message = choice_of(answer).get("message")
    return message if isinstance(message, dict) else {}


def errors_of(stream):
    """The events that tell of an error."""
    return [e for e in list(stream.events) if e.name == "error" or (isinstance(e.json, dict) and "error" in e.json)]


def whole_number(value):
    return type(value) is int


def shown(body):
    """A body as a verdict shows it: not longer than it needs to be."""
    if isinstance(body, bytes):
        text = body.decode("utf-8", "backslashreplace")
        return text if len(text) < 200 else f"{text[:100]} ... {text[-20:]}"
    return body


def require_error(room, reply, sent, status, type, code=None):
    """Requires an error with this status, in OpenAI's form."""
    require_error_form(reply.data, sent=sent, **facts(room, reply))
    error = reply.data["error"]
    require(
        error["type"] == type,
        f"the `type` of a {status} is not `{type}`",
        sent=sent,
        expected=type,
        got=str(reply),
    )
    if code:
        require(
            error["code"] == code, f"the `code` of a {status} is not `{code}`", sent=sent, expected=code, got=str(reply)
        )


def require_error_form(data, **found):
    """Requires OpenAI's form of an error; `found` are the facts of a Mistake."""
    found.setdefault("expected", '{"error": {"message": "...", "type": "...", "param": null, "code": null}}')
    if isinstance(data, dict) and isinstance(data.get("detail"), dict) and "error" in data["detail"]:
        fail("the error is under `detail`: HTTPException puts it there", **found)
    error = data.get("error") if isinstance(data, dict) else None
    if error is None and isinstance(data, dict) and "detail" in data:
        fail("an error has FastAPI's form, `detail`: OpenAI's client reads an object under `error`", **found)
    require(
        isinstance(error, dict), "an error is not an object under `error`, where OpenAI's client looks for it", **found
    )
    missing = [name for name in ("message", "type", "param", "code") if name not in error]
    require(missing == [], f"an error lacks {', '.join(missing)}: all four must be present", **found)
    message = error["message"]
    require(isinstance(message, str) and message.strip() != "", "an error's `message` is not a string", **found)
    for name in ("param", "code"):
        fits = error[name] is None or isinstance(error[name], str)
        require(fits, f"an error's `{name}` is neither a string nor null", **found)


@functools.cache
def openai_client():
    import openai

    # no certificates to load, no proxy to look for
    http_client = openai.DefaultHttpxClient(verify=False, trust_env=False)
    return openai.OpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, timeout=8, http_client=http_client)


def client_of(room, url):
    """OpenAI's own client of that server."""
    return openai_client().with_options(base_url=f"{url}/v1", timeout=0.8 * room.limit_s)


def said_by(error):
    return f"{type(error).__name__}: {error}"


# the tests


def test_the_model_is_loaded_once_at_start_up(shared_room):
    url = shared_room.serve(app)
    notes = shared_room.notes()
    require(
        notes["loads in create_app"] == 0,
        "create_app loads the model: do that at start-up, in each worker, when the app is served",
        expected="no call to load in create_app, one when the app starts",
        got=f"{notes['loads in create_app']} in create_app",
    )
    require(
        notes["loads"] == 1,
        "the model is still not loaded once the app has started: the first request would have to wait for it"
        if notes["loads"] == 0
        else "the model is loaded more than once at start-up",
        expected="one call to load",
        got=f"{notes['loads']} calls",
    )
    for body in (ask("one"), ask("two", stream=True), ask("three")):
        send(shared_room, url, body).reply()
    require(
        shared_room.notes()["loads"] == 1,
        "the model is loaded again for a request",
        expected="one call to load for all requests",
        got=f"{shared_room.notes()['loads']} calls for three requests",
    )
    one, two = (shared_room.serve(app, answers={"hi": [name]}) for name in ("one", "two"))
    got = [message_of(answer_to(shared_room, url, ask("hi"))).get("content") for url in (one, two)]
    require(
        got[0] != "two",
        "two apps share a model: when one app loads its model, it replaces the other's",
        sent="two apps, started one after the other, and a request to each",
        expected="each answers with the model that it has loaded",
        got=got,
    )


def test_an_answer_in_one_piece(shared_room):
    lasts = {"end": [" the end", "stop"], "only": ["all at once", "stop"]}
    url = shared_room.serve(app, answers={"hi": PIECES, "only": []}, lasts=lasts)
    for body in (ask("hi"), ask("hi", stream=False)):
        answer = answer_to(shared_room, url, body)
        facts = {"sent": body, "got": answer}
        require(
            answer.get("object") == "chat.completion",
            "the `object` of a non-streamed answer is not `chat.completion`",
            expected="chat.completion",
            **facts,
        )
        choices = answer.get("choices")
        require(
            isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict),
            "`choices` is not a list of one choice",
            expected='"choices": [{"index": 0, "message": ..., "finish_reason": ...}]',
            **facts,
        )
        require(
            choices[0].get("index") == 0 and whole_number(choices[0]["index"]),
            "the choice's `index` is not 0",
            expected='"index": 0',
            **facts,
        )
        message = choices[0].get("message")
        require(isinstance(message, dict), "the choice has no `message`", **facts)
        require(message.get("role") == "assistant", "the message's `role` is not `assistant`", **facts)
        expected = right_text(shared_room, message.get("content"))
        require(
            message.get("content") == expected,
            "the message's `content` is not the answer's pieces, joined with nothing in between",
            sent=body,
            expected=expected,
            got=message.get("content"),
        )
    if shared_room.elsewhere:
        return
    for content, text in (("end", "re: end the end"), ("only", "all at once")):
        got = choice_of(answer_to(shared_room, url, ask(content)))["message"].get("content")
        mistake = "the message's `content` is not the answer's pieces, joined with nothing in between"
        if got == text.removesuffix(lasts[content][0]):
            mistake += ": the last piece has text, too"
        require(got == text, mistake, sent=ask(content), expected=text, got=got)


def test_the_finish_reason_is_the_models(shared_room):
    lasts = {"cut": ["", "length"], "whole": ["", "stop"], "cut with text": [" end", "length"]}
    url = shared_room.serve(app, lasts=lasts)
    for content, (_, reason) in lasts.items():
        got = choice_of(answer_to(shared_room, url, ask(content))).get("finish_reason")
        mistake = "`finish_reason` is not the last piece's"
        if got == "stop":
            mistake += ": an answer that was cut off says `stop`"
        require(got == reason, mistake, sent=f"a model that ends with {reason}", expected=reason, got=got)
        stream = streamed(shared_room, url, ask(content))
        reasons = [choice_of(chunk).get("finish_reason") for chunk in chunks(stream)]
        reasons = [each for each in reasons if each is not None]
        # that there is one is another test's concern
        require(
            set(reasons) <= {reason},
            "the `finish_reason` of a stream is not the last piece's",
            sent=f"a model that ends with {reason}; stream: true",
            expected=reason,
            got=reasons,
        )


def test_usage_is_what_the_model_counted(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    prompt_tokens, completion_tokens = counts("hi", len(PIECES) + 1)
    answer = answer_to(shared_room, url, ask("hi"))
    require_usage(answer.get("usage"), prompt_tokens, completion_tokens, ask("hi"))


def require_usage(usage, prompt_tokens, completion_tokens, sent):
    expected = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    expected["total_tokens"] = prompt_tokens + completion_tokens
    facts = {"sent": sent, "expected": expected, "got": usage}
    require(isinstance(usage, dict), "there is no `usage`", **facts)
    for name, value in expected.items():
        mistake = f"`{name}` in usage is not what the model counted"
        if name == "completion_tokens":
            mistake += ": take it from the last piece; a piece is not a token"
        if name == "total_tokens":
            mistake = "`total_tokens` in usage is not the sum of the other two"
        require(usage.get(name) == value and whole_number(usage[name]), mistake, **facts)


def test_each_answer_has_an_id_of_its_own(shared_room):
    url = shared_room.serve(app)
    ids = []
    for body in (ask("hi"), ask("hi"), ask("ho")):
        ids.append(answer_to(shared_room, url, body).get("id"))
        stream = streamed(shared_room, url, body)
        ids += list(dict.fromkeys(chunk.get("id") for chunk in chunks(stream)[:1]))
    require(
        all(isinstance(each, str) and each for each in ids),
        "an answer's `id` is missing or is not a string",
        expected='"id": "chatcmpl-..."',
        got=ids,
    )
    require(len(set(ids)) == len(ids), "two requests have the same id", expected="a new one for each", got=ids)


def test_created_is_the_time_in_whole_seconds(shared_room):
    url = shared_room.serve(app)
    before = time.time()
    found = [answer_to(shared_room, url, ask("hi"))]
    found += chunks(streamed(shared_room, url, ask("hi")))[:1]
    for each in found:
        created = each.get("created")
        require(
            whole_number(created) and abs(created - before) < 3600,
            "`created` is not the current time, in whole seconds since 1970",
            expected=int(before),
            got=created,
        )


def test_the_answer_names_the_apps_model(shared_room):
    for name in names(shared_room):
        url = shared_room.serve(app, name=name)
        name, called = name or NAME, f"create_app(load, model={name!r})" if name else "create_app(load)"
        answer = answer_to(shared_room, url, ask("hi", model=name))
        named = [answer.get("model")]
        body = ask("hi", model=name, **WITH_USAGE)
        named += [chunk.get("model") for chunk in chunks(streamed(shared_room, url, body))]
        require(
            set(named) == {name},
            "an answer, or a chunk of it, has no `model`" if None in named else "an answer's `model` is not the app's",
            sent=f"{called}; model: {name}",
            expected=name,
            got=list(dict.fromkeys(named)),
        )


def test_a_stream_is_events_of_chunks(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    stream = streamed(shared_room, url, ask("hi", **WITH_USAGE))
    kind = stream.headers.get("content-type", "")
    require(
        kind.split(";")[0].strip().lower() == "text/event-stream",
        "the content type of a stream is not text/event-stream",
        expected="text/event-stream",
        got=kind or "no content type",
    )
    for event in stream.events:
        if event.data.strip('" ') == "[DONE]":
            continue  # that it is right is another test's concern
        require(event.name == "", "an event of a stream has a name", expected="data: {...}", got=str(event))
        chunk = event.json
        require(
            isinstance(chunk, dict),
            "an event's data is not a JSON object: json.dumps is one way to write it",
            expected='data: {"id": ..., "object": "chat.completion.chunk", ...}',
            got=str(event),
        )
        require(
            chunk.get("object") == "chat.completion.chunk",
            "the `object` of an event is not `chat.completion.chunk`",
            expected="chat.completion.chunk",
            got=event.data,
        )
        choices = chunk.get("choices")
        require(isinstance(choices, list), "a chunk's `choices` is not a list", got=event.data)
        for choice in choices:
            require(
                isinstance(choice, dict) and choice.get("index") == 0 and whole_number(choice["index"]),
                "the `index` of a chunk's choice is not 0",
                expected='"choices": [{"index": 0, "delta": ..., "finish_reason": null}]',
                got=event.data,
            )
            delta = choice.get("delta")
            mistake = "a chunk's choice has no `delta`"
            if "message" in choice:
                mistake += ": `message` is for non-streamed answers"
            require(isinstance(delta, dict), mistake, expected='"delta": {"content": "..."}', got=event.data)


def test_all_chunks_have_one_id(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    ids = [chunk.get("id") for chunk in chunks(streamed(shared_room, url, ask("hi", **WITH_USAGE)))]
    require(
        all(isinstance(each, str) and each for each in ids),
        "a chunk has no `id`",
        expected="the same id in all chunks of an answer",
        got=list(dict.fromkeys(ids)),
    )
    require(
        len(set(ids)) == 1,
        "the chunks of one answer have different ids",
        expected="the same id in all chunks of an answer",
        got=list(dict.fromkeys(ids)),
    )


def test_all_chunks_have_one_created(room):
    url, before = room.serve(app_made_yesterday), time.time()
    for body in (ask("hi"), ask("hi", stream=True)):
        found = [answer_to(room, url, body)] if "stream" not in body else chunks(streamed(room, url, body))
        require(
            all(not whole_number(each.get("created")) or each["created"] > before - 3600 for each in found),
            "`created` is the time when the app was created: it should be the time of the answer",
            sent=body,
            expected=int(before),
            got=[each.get("created") for each in found][:1],
        )
    url = room.serve(app_whose_clock_runs, answers={"hi": PIECES})
    times = [chunk.get("created") for chunk in chunks(streamed(room, url, ask("hi", **WITH_USAGE)))]
    require(
        all(each is not None for each in times),
        "a chunk has no `created`",
        expected="the same `created` in all chunks of an answer",
        got=times,
    )
    require(
        len(set(times)) == 1,
        "`created` differs between the chunks of one answer: it should be the time when the answer began",
        expected="the same `created` in all chunks of an answer",
        got=times,
    )


def test_the_first_chunk_has_the_role(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    found = chunks(streamed(shared_room, url, ask("hi")))
    deltas = [delta_of(chunk) for chunk in found]
    expected = '{"role": "assistant", "content": ""}'
    require(
        deltas != [] and deltas[0].get("role") == "assistant",
        "the first chunk's `delta` has no role",
        expected=expected,
        got=deltas[:2],
    )
    later = [delta for delta in deltas[1:] if delta.get("role") is not None]
    require(
        later == [],
        "the role is repeated in a later chunk: a client that joins the deltas gets it twice",
        expected="the role in the first chunk only",
        got=later[:1],
    )


def test_the_text_is_in_delta_content(shared_room):
    lasts = {"end": [" the end", "stop"], "only": ["all at once", "stop"]}
    url = shared_room.serve(app, answers={"hi": PIECES, "nothing": [], "only": []}, lasts=lasts)
    texts = {"hi": "".join(PIECES), "nothing": "", "end": "re: end the end", "only": "all at once"}
    for content, text in texts.items():
        stream = streamed(shared_room, url, ask(content))
        for chunk in chunks(stream):
            delta = delta_of(chunk)
            require(
                isinstance(delta.get("content", ""), str),
                "a `delta.content` is null: a client that joins the texts fails",
                expected='a string, or no "content" at all',
                got=delta,
            )
        got = text_of(stream)
        mistake = "the `delta.content` of all chunks, joined, is not the answer"
        if content in lasts and got + lasts[content][0] == text:
            mistake += ": the last piece has text, too"
        if got and text and got == text * 2:
            mistake += ": it appears twice"
        require(got == text, mistake, sent=ask(content, stream=True), expected=text, got=got)


def test_the_finish_reason_comes_once_and_last(shared_room):
    lasts = {"end": [" the end", "length"], "only": ["all at once", "stop"]}
    url = shared_room.serve(app, answers={"hi": PIECES, "nothing": [], "only": []}, lasts=lasts)
    for content in ("hi", "end", "nothing", "only"):
        stream = streamed(shared_room, url, ask(content))
        found = [chunk for chunk in chunks(stream) if choice_of(chunk)]
        expected = '..., then {"delta": {}, "finish_reason": "stop"}'
        given = [chunk for chunk in found if choice_of(chunk).get("finish_reason") is not None]
        got = [{name: choice_of(each).get(name) for name in ("delta", "finish_reason")} for each in found]
        require(given != [], "no chunk has a `finish_reason`", expected=expected, got=got)
        require(len(given) == 1, "`finish_reason` appears more than once", expected=expected, got=got)
        require(
            given[0] is found[-1],
            "more text follows the chunk with the `finish_reason`",
            expected=expected,
            got=got,
        )
        require(
            choice_of(given[0]).get("delta") == {},
            "the chunk with the `finish_reason` has something in its delta: send text in chunks before it",
            expected=expected,
            got=got[-1],
        )


def test_done_is_the_last_event(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    for options in ({}, WITH_USAGE):
        stream = streamed(shared_room, url, ask("hi", **options))
        done = [event for event in stream.events if event.data.strip() == "[DONE]"]
        if not done:
            said = '"[DONE]"' in stream.text and "data: [DONE] is in quotes: it is not JSON"
            unfinished = stream.unfinished and "data: [DONE] does not count: it, too, must end with a blank line"
            fail(
                said or unfinished or "the stream ends without data: [DONE]: a client cannot know that it is complete",
                sent=ask("hi", stream=True, **options),
                expected="data: [DONE]\n\n",
                got=stream.text[-100:],
            )
        require(
            len(done) == 1 and stream.events[-1] is done[0] and done[0].data == "[DONE]" and done[0].name == "",
            "data: [DONE] is wrong: it should appear once, as the last event, without a name",
            sent=ask("hi", stream=True, **options),
            expected="data: [DONE]\n\n",
            got="".join(map(str, stream.events[-3:])),
        )


def test_usage_of_a_stream_comes_when_it_is_asked_for(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    body = ask("hi", **WITH_USAGE)
    found = chunks(streamed(shared_room, url, body))
    sent = {**body, "stream": True}
    with_usage = [chunk for chunk in found if chunk.get("usage") is not None]
    expected = '{"choices": [], "usage": {...}} after the finish_reason'
    require(
        with_usage != [],
        "`stream_options.include_usage` was set, but no chunk has `usage`",
        sent=sent,
        expected=expected,
        got=found[-1:],
    )
    require(
        len(with_usage) == 1 and with_usage[0] is found[-1],
        "`usage` also appears in chunks other than the last",
        sent=sent,
        expected=expected,
        got=with_usage,
    )
    require(
        with_usage[0].get("choices") == [],
        "the chunk with `usage` has choices: it should be an extra one whose `choices` is empty",
        sent=sent,
        expected=expected,
        got=with_usage[0],
    )
    if not shared_room.elsewhere:
        require_usage(with_usage[0]["usage"], *counts("hi", len(PIECES) + 1), sent)


def test_usage_of_a_stream_does_not_come_unasked(shared_room):
    url = shared_room.serve(app, answers={"hi": PIECES})
    for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}, {"stream_options": {}}):
        found = chunks(streamed(shared_room, url, ask("hi", **options)))
        unasked = [chunk for chunk in found if chunk.get("usage") is not None or chunk.get("choices") == []]
        require(
            unasked == [],
            "a stream has `usage`, although the request did not ask for it"
            if any(chunk.get("usage") for chunk in unasked)
            else "a chunk without choices is sent although usage was not requested: clients that read choices[0] fail",
            sent=ask("hi", stream=True, **options),
            expected="no chunk with `usage`, and none without choices",
            got=unasked[:1],
        )


def test_each_piece_is_sent_as_soon_as_it_is_there(shared_room):
    pieces = ["one ", "two ", "three ", "four "]
    url = shared_room.serve(app, answers={"hi": pieces}, held=["hi"])
    stream, chat = send(shared_room, url, ask("hi", stream=True)), Chat(shared_room)
    chat.begun(stream, "hi")
    for number, piece in enumerate(pieces, 1):
        chat.let("hi")
        # that its text is as it was, and comes once, is another test's concern
        if stream.wait(lambda piece=piece: piece.strip() in text_of(stream), WAIT_S):
            continue
        came = text_of(stream)
        where = shared_room.where() or None
        chat.let("hi")
        late = stream.wait(lambda came=came: len(text_of(stream)) > len(came), 0.5)
        chat.let("hi", None)
        stream.ended(WAIT_S)
        if not text_of(stream):
            break  # that there is text at all is another test's concern
        fail(
            "each piece arrives late: it is sent only when the next one is ready"
            if late and number < len(pieces)
            else "nothing streams: all pieces arrived after the model had finished"
            if not came
            else f"after {number - 1} pieces, nothing more arrived until the model had finished",
            expected=f"piece {number} while the model is working on piece {number + 1}",
            got=came or "no text",
            where=where,
        )
    chat.let("hi", None)
    stream.ended(WAIT_S)


def test_any_text_survives(shared_room):
    url = shared_room.serve(app, answers={"hi": TEXTS})
    for mode in ("in a stream", "in a non-streamed answer"):
        if mode == "in a stream":
            stream = streamed(shared_room, url, ask("hi"))
            broken = [e for e in stream.events if e.json is None and e.data.strip() != "[DONE]"]
            if broken:
                fail(
                    "an event's data is not JSON when the text has quotes, backslashes or newlines: json.dumps is one"
                    " way to write it",
                    sent=f"one of the pieces {TEXTS}",
                    got=str(broken[0]),
                )
            got = text_of(stream)
        else:
            got = message_of(answer_to(shared_room, url, ask("hi"))).get("content") or ""
        place = 0
        for number, piece in enumerate(TEXTS):
            require(
                got.startswith(piece, place),
                f"the piece {piece!r} is changed on the way",
                sent=f"the model's piece {number + 1} of {len(TEXTS)}: {piece!r}; {mode}",
                expected=repr(piece),
                got=repr(got[place : place + len(piece) + 5]),
            )
            place += len(piece)
        require(got[place:] == "", "more text follows the end of the answer", got=repr(got[place:]))


def test_the_models_list(shared_room):
    for name in names(shared_room):
        http = Http(shared_room, shared_room.serve(app, name=name))
        reply = http.get("/v1/models")
        name = name or NAME
        expected = f'{{"object": "list", "data": [{{"id": "{name}", "object": "model", ...}}]}}'
        require(reply.status == 200, "GET /v1/models does not return 200", expected=expected, **http.facts(reply))
        data = reply.data
        models = data.get("data") if isinstance(data, dict) else None
        require(
            isinstance(models, list) and len(models) == 1 and isinstance(models[0], dict),
            "`data` in GET /v1/models is not a list with one model",
            expected=expected,
            got=str(reply),
        )
        require(
            data.get("object") == "list" and models[0].get("object") == "model",
            "an `object` in GET /v1/models is missing: it should be `list` at the top level and `model` for each model",
            expected=expected,
            got=str(reply),
        )
        require(models[0].get("id") == name, "the `id` of the model is not its name", expected=expected, got=str(reply))


# what is asked


def asked_with(room, url, body):
    """What `chat` was called with."""
    before = len(Chat(room).talks())
    reply = reply_to(room, url, body)
    require_200(room, body, reply)
    talks = Chat(room).talks()[before:]
    require(
        len(talks) == 1,
        "`chat` is not called exactly once for each request",
        sent=body,
        expected="one call to chat",
        got=f"{len(talks)} calls",
    )
    return talks[0]


def test_the_messages_reach_the_model(shared_room):
    url = shared_room.serve(app)
    four = [
        {"role": "system", "content": "You are terse.\n"},
        {"role": "user", "content": '你好 👍🏽 "quoted" <|im_end|>'},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": " and now? "},
    ]
    turns = [("user", "one"), ("user", "two"), ("system", "Be terse."), ("assistant", "1"), ("assistant", "2")]
    long = [{"role": role, "content": f"{number} {said}"} for number in range(20) for role, said in turns]
    for messages, stream in itertools.product((four, long), (False, True)):
        body = {"model": NAME, "messages": messages, "stream": stream}
        got = asked_with(shared_room, url, body)["messages"]
        facts = {"sent": body, "expected": messages, "got": got}
        require(isinstance(got, list) and len(got) == len(messages), "not all messages reach `chat`", **facts)
        dicts = all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in got)
        require(dicts, "the messages that reach `chat` are not dicts of role and content", **facts)
        moved = got != messages and sorted(map(str, got)) == sorted(map(str, messages))
        require(not moved, "the messages reach `chat` in a different order", **facts)
        require(
            [each["role"] for each in got] == [each["role"] for each in messages],
            "the roles of the messages do not reach `chat` unchanged",
            **facts,
        )
        require(got == messages, "the messages do not reach `chat` unchanged", **facts)


def test_content_parts_are_joined_with_nothing_between(shared_room):
    url = shared_room.serve(app)
    parts = [{"type": "text", "text": text} for text in ("Hel", "lo ", "", "你", "\n", "好")]
    body = {"model": NAME, "messages": [{"role": "system", "content": parts[:1]}, {"role": "user", "content": parts}]}
    got = asked_with(shared_room, url, body)["messages"]
    expected = [{"role": "system", "content": "Hel"}, {"role": "user", "content": "Hello 你\n好"}]
    require(
        got == expected,
        "`content` that is a list of parts does not reach `chat` as one text, joined with nothing in between",
        sent=parts,
        expected=expected,
        got=got,
    )


def test_the_options_reach_the_model(shared_room):
    url = shared_room.serve(app)
    for options in (
        {"max_tokens": 7, "temperature": 0.25, "top_p": 0.5, "seed": 42},
        {"max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 0},
        {"max_completion_tokens": 5, "temperature": 2, "top_p": 0.01, "seed": 2**32 - 1},
    ):
        for stream in (False, True):
            body = ask("hi", stream=stream, **options)
            talk = asked_with(shared_room, url, body)
            for name, value in options.items():
                name = "max_tokens" if name == "max_completion_tokens" else name
                mistake = f"`chat` is called with the wrong `{name}`"
                if value == 0:
                    mistake += ": 0 is not the same as leaving it out"
                got = talk[name]
                require(got == value and type(got) is not bool, mistake, sent=body, expected=value, got=got)


DEFAULTS = {"max_tokens": None, "temperature": 1, "top_p": 1, "seed": None, "stop": []}


def require_defaults(talk, body, how):
    for name, value in DEFAULTS.items():
        require(
            talk[name] == value,
            f"when `{name}` {how}, `chat` does not get the default",
            sent=body,
            expected=f"{name}={value}",
            got=f"{name}={talk[name]}",
        )


def test_what_is_left_out_has_its_default(shared_room):
    url = shared_room.serve(app)
    require_defaults(asked_with(shared_room, url, ask("hi")), ask("hi"), "is left out")


OPTIONAL = [*DEFAULTS, "max_completion_tokens", "n", "stream", "stream_options"]


def test_null_is_as_if_left_out(shared_room):
    url = shared_room.serve(app)
    for body in (ask("hi", **dict.fromkeys(OPTIONAL)), ask("hi", stream=True, stream_options={"include_usage": None})):
        reply = reply_to(shared_room, url, body)
        require(
            reply.status == 200,
            f"null is refused with a {reply.status}: it is the same as leaving the field out",
            sent=body,
            expected=200,
            **facts(shared_room, reply),
        )
        require_defaults(asked_with(shared_room, url, body), body, "is null")
    # null beside a value
    talk = asked_with(shared_room, url, ask("hi", max_tokens=9, max_completion_tokens=None))
    require(
        talk["max_tokens"] == 9,
        "when `max_completion_tokens` is null, `max_tokens` is ignored",
        sent=ask("hi", max_tokens=9, max_completion_tokens=None),
        expected="max_tokens=9",
        got=f"max_tokens={talk['max_tokens']}",
    )


def test_max_completion_tokens_wins(shared_room):
    url = shared_room.serve(app)
    for both in ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_completion_tokens": 3, "max_tokens": 8}):
        talk = asked_with(shared_room, url, ask("hi", **both))
        require(
            talk["max_tokens"] == both["max_completion_tokens"],
            "when `max_tokens` and `max_completion_tokens` are both given, the latter does not take precedence",
            sent=ask("hi", **both),
            expected=f"max_tokens={both['max_completion_tokens']}",
            got=f"max_tokens={talk['max_tokens']}",
        )


def test_stop_is_a_string_or_a_list(shared_room):
    url = shared_room.serve(app)
    for stop, expected in (
        ("END", ["END"]),
        (["END"], ["END"]),
        (["\n\n", "你好", "a", " "], ["\n\n", "你好", "a", " "]),
        (" ", [" "]),
    ):
        got = asked_with(shared_room, url, ask("hi", stop=stop))["stop"]
        mistake = "`stop` does not reach `chat` as a list of strings"
        if isinstance(got, str) or got == list(stop) != expected:
            mistake += ": a single string is split into its characters"
        require(got == expected, mistake, sent=ask("hi", stop=stop), expected=expected, got=got)


def test_other_fields_are_ignored(shared_room):
    url = shared_room.serve(app)
    more = {"n": 1, "frequency_penalty": 0.5, "logit_bias": {}, "store": True, "metadata": {"a": [1]}, "top_k": 3}
    body = ask("hi", **more)
    body["messages"][0]["name"] = "Alice"
    deeper = ask([{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}], stream=True)
    deeper["stream_options"] = {"include_usage": True, "include_obfuscation": False}
    for each in (body, deeper):
        reply = reply_to(shared_room, url, each)
        require(
            reply.status == 200,
            f"a field that the exercise does not mention is refused with a {reply.status}: ignore it",
            sent=each,
            expected=200,
            **facts(shared_room, reply),
        )
        require_defaults(asked_with(shared_room, url, each), each, "is left out")


# what is refused

LEFT_OUT = object()

WRONG = [
    ("a missing `model`", {"model": LEFT_OUT}),
    ("a null `model`", {"model": None}),
    ("a `model` that is a number", {"model": 5}),
    ("a missing `messages`", {"messages": LEFT_OUT}),
    ("a null `messages`", {"messages": None}),
    ("an empty `messages` list", {"messages": []}),
    ("a string as `messages`", {"messages": "hi"}),
    ("a message that is a string", {"messages": ["hi"]}),
    ("a message without a role", {"messages": [{"content": "hi"}]}),
    ("the role `tool`", {"messages": [{"role": "tool", "content": "hi"}]}),
    ("a role that is null", {"messages": [{"role": None, "content": "hi"}]}),
    ("an unknown role in the second message", {"messages": [ask("hi")["messages"][0], {"role": "x", "content": "hi"}]}),
    ("a message without `content`", {"messages": [{"role": "user"}]}),
    ("null as `content`", {"messages": [{"role": "user", "content": None}]}),
    ("a number as `content`", {"messages": [{"role": "user", "content": 5}]}),
    ("an object as `content`", {"messages": [{"role": "user", "content": {"text": "hi"}}]}),
    ("a list of strings as `content`", {"messages": [{"role": "user", "content": ["hi"]}]}),
    ("a part that is not text", {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]}),
    ("a text part without its text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    ("a part without a type", {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
    ("a `max_tokens` of 0", {"max_tokens": 0}),
    ("a `max_tokens` of -1", {"max_tokens": -1}),
    ("a `max_tokens` of 1.5", {"max_tokens": 1.5}),
    ('a `max_tokens` of "many"', {"max_tokens": "many"}),
    ("a `max_completion_tokens` of 0", {"max_completion_tokens": 0}),
    ("a list as `max_completion_tokens`", {"max_completion_tokens": [5]}),
    ("a `temperature` of -0.1", {"temperature": -0.1}),
    ("a `temperature` of 2.1", {"temperature": 2.1}),
    ('a `temperature` of "hot"', {"temperature": "hot"}),
    ("a `top_p` of 0", {"top_p": 0}),
    ("a `top_p` of 1.1", {"top_p": 1.1}),
    ("a `top_p` of -0.5", {"top_p": -0.5}),
    ("an `n` of 2", {"n": 2}),
    ("an `n` of 0", {"n": 0}),
    ("an empty `stop`", {"stop": ""}),
    ("an empty string in `stop`", {"stop": ["a", ""]}),
    ("a `stop` of five strings", {"stop": ["a", "b", "c", "d", "e"]}),
    ("a `stop` that is a number", {"stop": 5}),
    ("a `stop` of numbers", {"stop": [1, 2]}),
    ('a `seed` of "x"', {"seed": "x"}),
    ("a `seed` of 1.5", {"seed": 1.5}),
    ('a `stream` of "perhaps"', {"stream": "perhaps"}),
    ("a number as `stream_options`", {"stream": True, "stream_options": 5}),
    ('an `include_usage` of "perhaps"', {"stream": True, "stream_options": {"include_usage": "perhaps"}}),
    ("a `max_tokens` of 0 in a stream", {"stream": True, "max_tokens": 0}),
    ("an empty `messages` list in a stream", {"stream": True, "messages": []}),
]

LONG_NUMBER = json.dumps(ask("hi", temperature=0)).replace('"temperature": 0', f'"temperature": {"9" * 5000}').encode()
"""Python refuses to read so long a number, and not with a JSONDecodeError."""
DEEP = 20_000
NO_OBJECTS = [
    ("an empty body", b""),
    ("a body that is not JSON", b"model=tiny-qwen"),
    ("a truncated body", b'{"model": "tiny-qwen", "messages": ['),
    ("a body that is not UTF-8", b'{"model": "tiny-qwen", "messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    (
        "a body that is nested too deeply",
        b'{"model": "tiny-qwen", "messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    ),
    ("a JSON list", b'["hi"]'),
    ("a JSON string", b'"hi"'),
    ("the JSON value null", b"null"),
]


def wrong(changes):
    body = {**ask("hi"), **changes}
    return {name: value for name, value in body.items() if value is not LEFT_OUT}


def require_400(room, url, what, body):
    reply = reply_to(room, url, body)
    mistake = f"{what} is not refused" if reply.status < 400 else f"{what} gets a {reply.status}: it should be a 400"
    if reply.status == 422:
        mistake = "an invalid body gets FastAPI's 422: it should be a 400 with OpenAI's error"
    if reply.status == 500:
        mistake = f"{what} gets a 500: it is the client's mistake, so it should be a 400"
    require(reply.status == 400, mistake, sent=shown(body), expected=400, **facts(room, reply))


def test_a_wrong_field_is_a_400(shared_room):
    url = shared_room.serve(app)
    for what, changes in WRONG:
        require_400(shared_room, url, what, wrong(changes))
    require_400(shared_room, url, "a `temperature` with 5,000 digits", LONG_NUMBER)


def test_a_body_that_is_not_a_json_object_is_a_400(shared_room):
    url = shared_room.serve(app)
    for what, body in NO_OBJECTS:
        require_400(shared_room, url, what, body)


def test_another_model_is_a_404(shared_room):
    for name in names(shared_room):
        url = shared_room.serve(app, name=name)
        own = name or NAME
        others = "gpt-4o" if name is None else NAME, own.upper(), f"mine/{own}", f"{own}:latest", f" {own}", own[:-1]
        for asked, stream in itertools.product(others, (False, True)):
            body = ask("hi", model=asked, stream=stream)
            reply = reply_to(shared_room, url, body)
            require(
                reply.status == 404,
                "another model's name is not refused"
                if reply.status < 400
                else f"another model's name gets a {reply.status}: it should be a 404",
                sent=body,
                expected=404,
                **facts(shared_room, reply),
            )
        # whether that is another model's name or none is left open
        reply = reply_to(shared_room, url, ask("hi", model=""))
        mistake = "an empty `model` is not refused"
        require(reply.status in (400, 404), mistake, sent=ask("hi", model=""), **facts(shared_room, reply))


def test_what_is_refused_has_openais_form(shared_room):
    url = shared_room.serve(app)
    for body in [*(wrong(changes) for _, changes in WRONG), *(body for _, body in NO_OBJECTS[1:5])]:
        reply = reply_to(shared_room, url, body)
        if reply.status >= 400:  # that it is, is another test's concern
            require_error(shared_room, reply, shown(body), 400, "invalid_request_error")
    body = ask("hi", model="gpt-4o")
    reply = reply_to(shared_room, url, body)
    if reply.status >= 400:
        require_error(shared_room, reply, body, 404, "invalid_request_error", "model_not_found")


def test_what_is_refused_costs_no_step(shared_room):
    url = shared_room.serve(app)
    bodies = [wrong(changes) for _, changes in WRONG] + [ask("hi", model="gpt-4o"), ask("hi", model="x", stream=True)]
    for body in bodies:
        status = reply_to(shared_room, url, body).status
        steps = Chat(shared_room).steps()
        if status < 400:
            return  # that it is refused is another test's concern
        require(
            steps == 0,
            "the model takes steps for a refused request: check the whole body first, then call `chat`",
            sent=body,
            expected="0 steps",
            got=f"{steps} steps",
        )


# a model that fails


def test_a_prompt_over_the_window_is_a_400(shared_room):
    for script, when in (
        ({"fails": {"hi": [0, OVER, "ValueError"]}}, "when the first piece is requested"),
        ({"refuses": {"hi": [OVER, "ValueError"]}}, "during the call to `chat`"),
    ):
        for stream in (False, True):
            url = shared_room.serve(app, **script)  # an app for each, as below
            body = ask("hi", stream=stream)
            sent = f"{json.dumps(body)}; chat raises ValueError({OVER!r}) {when}"
            reply = reply_to(shared_room, url, body)
            mistake = f"a ValueError {when} gets a {reply.status}: the prompt is too long, so it should be a 400"
            if reply.status == 200:
                mistake += ". Wait for the first piece before you start the response"
            require(reply.status == 400, mistake, sent=sent, expected=400, **facts(shared_room, reply))
            require_error(shared_room, reply, sent, 400, "invalid_request_error", "context_length_exceeded")


def test_a_model_that_fails_before_its_first_piece_is_a_500(shared_room):
    for error in ERRORS:
        scripts = [({"fails": {"hi": [0, "no GPU", error]}}, "before its first piece")]
        if error == ERRORS[0]:
            scripts.append(({"refuses": {"hi": ["no GPU", error]}}, "during the call to `chat`"))
        for script, when in scripts:
            for stream in (False, True):
                # an app for each: that an error costs the next request its answer is another test's concern
                url = shared_room.serve(app, **script)
                body = ask("hi", stream=stream)
                sent = f"{json.dumps(body)}; the model raises {error} {when}"
                reply = failed_reply(shared_room, url, body, sent, f"the model fails {when}")
                mistake = f"the model failed {when}, but the status is {reply.status}"
                if reply.status == 200:
                    mistake += ": wait for the first piece before you start the response"
                require(reply.status == 500, mistake, sent=sent, expected=500, **facts(shared_room, reply))


def failed_reply(room, url, body, sent, what):
    """The Reply of a request whose model fails."""
    stream = send(room, url, body)
    if not stream.ended(WAIT_S):
        raise room.hung(f"{what}, and no answer arrives", sent=sent, got=str(stream) or None)
    if stream.broken:
        raise room.broken(f"{what}, and the connection breaks", sent=sent)
    return stream.reply()


def test_a_model_that_fails_later_is_a_500_where_nothing_was_sent(shared_room):
    for error in [*ERRORS, "ValueError"]:
        url = shared_room.serve(app, answers={"hi": ["one ", "two "]}, fails={"hi": [1, "no GPU", error]})
        sent = f"{json.dumps(ask('hi'))}; the model raises {error} after a piece"
        reply = failed_reply(shared_room, url, ask("hi"), sent, "the model fails after a piece")
        mistake = f"the model failed after a piece of a non-streamed answer, but the status is {reply.status}"
        if error == "ValueError" and reply.status == 400:
            mistake = "a ValueError after the first piece gets a 400: the request was valid, so it should be a 500"
        elif reply.status == 200:
            mistake += ": half an answer is sent as if it were complete"
        require(reply.status == 500, mistake, sent=sent, expected=500, **facts(shared_room, reply))


def test_a_500_has_openais_form(shared_room):
    fails = {"at its first piece": [0, "no GPU", "OutOfTokens"], "after a piece": [1, "no GPU", "KeyError"]}
    refuses = {"at the call": ["no GPU", "RuntimeError"]}
    url = shared_room.serve(app, answers={"after a piece": ["one "]}, fails=fails, refuses=refuses)
    for when in (*fails, *refuses):
        reply = reply_to(shared_room, url, ask(when))
        if reply.status == 500:  # that it is, is another test's concern
            require_error(shared_room, reply, f"`chat` fails {when}", 500, "server_error")


def test_a_model_that_fails_in_mid_stream_is_an_error_event(shared_room):
    message = 'the "GPU" is gone:\n\\\\host\\gpu0\r\n\ndata: {}'
    expected = 'two chunks of text, then data: {"error": {"message": ..., "type": "server_error", ...}}, then the end'
    for error in [*ERRORS, "ValueError"]:
        url = shared_room.serve(app, answers={"hi": ["one ", "two "]}, fails={"hi": [2, message, error]})
        stream = send(shared_room, url, ask("hi", stream=True))
        sent = f"stream: true; the model raises {error}({message!r}) after two pieces"
        if not stream.ended(WAIT_S):
            raise shared_room.hung(
                "the model failed mid-stream, but the stream does not end", sent=sent, got=str(stream)
            )
        if stream.status != 200:
            return  # that a stream begins with its first piece is another test's concern
        found = {"expected": expected, "got": str(stream), "where": shared_room.last_error()[1]}
        errors = errors_of(stream)
        if not errors:
            broken = [e for e in stream.events if e.json is None and "error" in e.data]
            mistake = "the model failed mid-stream, but no event says so"
            if stream.broken:
                mistake += ": the connection breaks"
            if error != ERRORS[0]:
                mistake = f"no event reports a {error} mid-stream: the model may raise any Exception"
            if broken:
                mistake = "the error event's data is not JSON: json.dumps escapes quotes and newlines"
            fail(mistake, sent=sent, **found)
        require(
            isinstance(errors[0].json, dict),
            "the error event's data is not JSON: json.dumps escapes quotes and newlines",
            sent=sent,
            **found,
        )
        require(
            errors[0].name in ("", "error"),
            "the error event has a name other than `error`",
            sent=sent,
            **found,
        )
        require_error_form(errors[0].json, sent=sent, **found)
        require(
            errors[0].json["error"]["type"] == "server_error",
            "the `type` of an error mid-stream is not `server_error`",
            sent=sent,
            **found,
        )
        require(
            text_of(stream) == "one two ",
            "some of the pieces before an error do not arrive",
            sent=sent,
            **found,
        )


def test_after_an_error_the_stream_just_ends(shared_room):
    for error in ("RuntimeError", "ValueError"):
        url = shared_room.serve(app, answers={"hi": ["one ", "two "]}, fails={"hi": [2, "no GPU", error]})
        stream = send(shared_room, url, ask("hi", stream=True, **WITH_USAGE))
        sent = f"stream: true; the model raises {error} after two pieces"
        stream.ended(WAIT_S)
        found = {"sent": sent, "expected": "the error event is the last event", "got": str(stream)}
        if stream.status != 200:
            return
        require(
            all(event.data.strip() != "[DONE]" for event in stream.events),
            "an answer that broke off ends with [DONE], as if it were complete",
            **found,
        )
        require(
            all(choice_of(chunk).get("finish_reason") is None for chunk in chunks(stream)),
            "an answer that broke off has a `finish_reason`, as if it were complete",
            **found,
        )
        errors = errors_of(stream)
        if not errors:
            return  # that there is one is another test's concern
        require(
            len(errors) == 1 and stream.events[-1] is errors[0],
            "another event follows the error event",
            **found,
        )
        require(
            not stream.broken,
            "after the error event, the stream breaks off instead of ending: raise nothing once the event is sent",
            where=shared_room.last_error()[1],
            **found,
        )


def test_an_error_tells_nothing_of_the_exception(shared_room):
    secret = "CUDA error at /srv/secret/weights.bin"
    for error in ERRORS[1:]:
        fails = {"first": [0, secret, error], "later": [1, secret, error]}
        url = shared_room.serve(app, answers={"later": ["one ", "two "]}, fails=fails)
        for body in (ask("first"), ask("later"), ask("first", stream=True), ask("later", stream=True)):
            stream = send(shared_room, url, body)
            stream.ended(WAIT_S)
            told = re.search(rf"{error}|CUDA|secret|Traceback|\.py\b", stream.text)
            if told:
                what = {error: "type", "Traceback": "traceback"}.get(told[0], "text")
                fail(
                    f"the answer shows the exception's {what}: that belongs in the server's log",
                    sent=f"{json.dumps(body)}; the model raises {error}({secret!r})",
                    expected="a plain message",
                    got=str(stream).replace("Traceback (most recent call last):", "(a traceback)"),
                )


def test_after_an_error_the_next_request_works(shared_room):
    fails = {"first": [0, "no"], "later": [1, "no"], "over": [0, OVER, "ValueError"]}
    url = shared_room.serve(app, answers={"later": ["one ", "two "]}, fails=fails)
    for stream in (False, True):
        for content in ("fine 1", "first", "fine 2", "later", "fine 3", "over", "fine 4"):
            asked = send(shared_room, url, ask(content, stream=stream))
            ended = asked.ended(WAIT_S)
            if content in fails:
                continue  # how an error is told is other tests' concern
            if not ended:
                raise shared_room.hung(f"the request {content!r} gets no answer", got=str(asked))
            require(
                asked.status == 200 and content in asked.text.replace('"content": "', "") and not asked.broken,
                "a request is not answered"
                if content == "fine 1"
                else "after an error in the model, the next request is not answered",
                sent=ask(content, stream=stream),
                expected=f"200 and the text 're: {content}'",
                got=str(asked),
                where=shared_room.last_error()[1],
            )


# leaving


def left(room, stream, pieces):
    """A Chat whose answer to "hi" was left by its client after so many pieces, and is held."""
    url = room.serve(app, answers={"hi": ["word "] * LONG}, held=["hi"])
    chat, client = Chat(room), send(room, url, ask("hi", stream=stream))
    chat.begun(client, "hi")
    for number in range(1, pieces + 1):
        chat.let("hi")
        chat.asked("hi", number + 1, WAIT_S)
    if stream and pieces:
        # a stream that does not stream is another test's concern
        client.wait(lambda: text_of(client) != "", 1.0)
    client.leave_and_be_missed()
    # an answer may look for its client now and then
    wait_until(lambda: chat.talk("hi")["left"], 0.5)
    return chat


def wait_until(holds, limit_s):
    until = time.monotonic() + limit_s
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)


def require_stopped(room, stream, pieces):
    chat = left(room, stream, pieces)
    asked = chat.talk("hi")["asked"]
    after = chat.steps_after_leaving("hi", LONG)
    unread = chat.talk("hi")["asked"] <= asked + 1
    what = "a stream" if stream else "a non-streamed answer"
    left_it = "left a stream" if stream else "disconnected before its non-streamed answer was ready"
    when = f"after {pieces} pieces" if pieces else "before the first piece"
    require(
        after <= MOST_STEPS,
        f"the client {left_it}, but what chat returned was never closed: the model kept working"
        if unread
        else f"the client {left_it}, but the model kept working",
        sent=f"{what} whose client leaves {when}",
        expected=f"at most {MOST_STEPS} steps: close what chat returned, or cancel its reader",
        got=f"{after} steps for an answer that no one reads",
    )
    room.wait(
        lambda: chat.talk("hi")["left"],
        f"the client {left_it}, but the model was never told: it keeps the answer open forever",
        WAIT_S,
        sent=f"{what} whose client leaves {when}",
        expected="close what chat returned (aclose), or cancel its reader",
    )


def test_the_model_stops_when_a_stream_is_left(room):
    for pieces in (0, 2):
        require_stopped(room, True, pieces)


def test_the_model_stops_when_an_answer_in_one_piece_is_left(room):
    for pieces in (0, 2):
        require_stopped(room, False, pieces)


def test_leaving_is_noticed_while_no_piece_comes(room):
    for stream in (True, False):
        for pieces in (0, 1):
            chat = left(room, stream, pieces)
            what = "a stream" if stream else "a non-streamed answer"
            when = f"after {pieces} piece" if pieces else "before the first piece"
            room.wait(
                lambda chat=chat: chat.talk("hi")["left"],
                f"the server notices only at the next piece of {what} that the client has left:"
                " until then, the model goes on",
                WAIT_S,
                sent=f"{what} whose client leaves {when}, while the model is working",
                expected="wait for the next piece and for the client to leave at the same time",
            )


def test_leaving_disturbs_no_other(room):
    answers = {name: [f"{name}{number} " for number in (1, 2, 3)] for name in "wxyz"}
    url = room.serve(app, answers=answers, held=["w", "x", "y"])
    chat, clients = Chat(room), {}
    for name in "wxy":
        client = clients[name] = send(room, url, ask(name, stream=name != "x"))
        if chat.asked(name, limit_s=WAIT_S):  # that answers wait for each other is another test's concern
            chat.let(name)
            chat.asked(name, 2, WAIT_S)
    for name in "wx":
        clients[name].leave_and_be_missed()
    chat.let("y", None)
    clients["z"] = send(room, url, ask("z", stream=True))
    for name, who in (("y", "another client connected at the same time"), ("z", "the next client")):
        client = clients[name]
        if not client.ended(WAIT_S):
            raise room.hung(f"a client left, and {who} got an incomplete answer", got=str(client))
        require(
            client.status == 200 and text_of(client) == "".join(answers[name]) and not client.broken,
            f"a client left, and {who} did not get the whole answer",
            expected="".join(answers[name]),
            got=str(client),
            where=room.last_error()[1],
        )


# many


def test_answers_do_not_wait_for_each_other(shared_room):
    url = shared_room.serve(app, held=["first", "second"])
    chat = Chat(shared_room)
    held = {name: send(shared_room, url, ask(name, stream=name == "first")) for name in ("first", "second")}
    for stream in (False, True):
        client = send(shared_room, url, ask("third", stream=stream))
        if not client.ended(WAIT_S):
            shared_room.turns()  # says so if the event loop is blocked
            raise shared_room.hung(
                "one answer waits for another: a client got no answer while the model was paused for two others",
                sent=ask("third", stream=stream),
                expected="no answer waits for another",
            )
    for name, client in held.items():
        chat.let(name, None)
        client.ended(WAIT_S)


def test_64_at_once_each_get_their_own(shared_room):
    names = [f"client {number}." for number in range(MANY)]
    url = shared_room.serve(app, held=names[:1])
    clients = [send(shared_room, url, ask(name, stream=number % 2 == 0)) for number, name in enumerate(names)]
    Chat(shared_room).let(names[0], None)
    for number, (name, client) in enumerate(zip(names, clients, strict=True)):
        if not client.ended():
            raise shared_room.hung(f"one of {MANY} concurrent requests gets no answer", sent=ask(name))
        got = text_of(client) if number % 2 == 0 else message_of(client.reply().data or {}).get("content")
        require(
            got == f"re: {name}",
            f"one of {MANY} concurrent requests gets an answer that is not its own",
            sent=ask(name, stream=number % 2 == 0),
            expected=f"re: {name}",
            got=got or str(client),
        )
    ids = [chunk.get("id") for client in clients[::2] for chunk in chunks(client)[:1]]
    require(len(set(ids)) == len(ids), "two requests have the same id", expected="a new one for each", got=ids[:3])


# OpenAI's own client


def test_the_official_client_reads_an_answer(shared_room):
    client = client_of(shared_room, shared_room.serve(app, answers={"hi": PIECES}))
    try:
        completion = client.chat.completions.create(**ask("hi"))
        found = {
            "text": completion.choices[0].message.content,
            "finish_reason": completion.choices[0].finish_reason,
            "models": [each.id for each in client.models.list()],
        }
    except Exception as error:  # noqa: BLE001 - whatever the client makes of it
        fail("OpenAI's client cannot read a non-streamed answer", sent=ask("hi"), got=said_by(error))
    text = right_text(shared_room, found["text"])
    reason = found["finish_reason"] if shared_room.elsewhere else "stop"
    require(
        found == {"text": text, "finish_reason": reason, "models": [NAME]},
        "OpenAI's client does not read the answer that the model gave",
        expected=text,
        got=found,
    )


def test_the_official_client_reads_a_stream(shared_room):
    client = client_of(shared_room, shared_room.serve(app, answers={"hi": PIECES}))
    body = ask("hi", stream=True, **WITH_USAGE)
    text, usage = "", None
    try:
        for chunk in client.chat.completions.create(**body):
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
            usage = chunk.usage or usage
    except Exception as error:  # noqa: BLE001
        fail("OpenAI's client cannot read a stream", sent=body, got=said_by(error))
    expected = right_text(shared_room, text)
    require(text == expected, "OpenAI's client does not read the text that the model gave", sent=body, got=text)
    require(usage is not None, "OpenAI's client finds no `usage` in a stream that should have it", sent=body)


def test_the_official_client_raises_its_own_errors(shared_room):
    import openai

    fails = {"over": [0, OVER, "ValueError"], "first": [0, "no GPU"], "later": [1, 'no "GPU"']}
    client = client_of(shared_room, shared_room.serve(app, answers={"later": ["one ", "two "]}, fails=fails))
    for body, kind in (
        (ask("hi", max_tokens=0), openai.BadRequestError),
        (ask("over"), openai.BadRequestError),
        (ask("hi", model="gpt-4o"), openai.NotFoundError),
        (ask("first"), openai.InternalServerError),
        (ask("later", stream=True), openai.APIError),
    ):
        if shared_room.elsewhere and body["messages"][0]["content"] in fails:
            continue
        try:
            answer = client.chat.completions.create(**body)
            got = "".join(str(chunk) for chunk in answer) if body.get("stream") else str(answer)
        except openai.APIError as error:
            if isinstance(error, kind):
                continue
            got = said_by(error)
        except Exception as error:  # noqa: BLE001
            got = said_by(error)
        fail(
            "OpenAI's client does not raise its own error",
            sent=body,
            expected=f"openai.{kind.__name__}",
            got=got,
        )
