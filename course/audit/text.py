"""Whether the text is right: repeatable, cut where it should be, with whole characters and no one else's words."""

import re

from course.audit.server import QUESTION, DoesNotApply, Failed, quote, require_answer, shorten

UNICODE = {
    "Chinese": "你好！请用中文简单介绍一下你自己，谢谢。",
    "kana": "こんにちは。じこしょうかいをしてください。",
    "emoji": "Please answer with a few emoji: 👍🏽 👩‍👩‍👧‍👦 🇨🇭",
    "accents": "Répète, s'il te plaît : cafe\u0301, naïve, Ångström.",
}
CONTROL = re.compile(r"<\|[a-z_]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<｜[^｜]{1,40}｜>", re.IGNORECASE)
"""What the control tokens of common chat templates look like."""
TYPED = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>"]
TIMES = 20


async def repeatable(server):
    """at temperature 0, the same question gets the same answer

    Tests, caches and comparisons rely on it; an answer that depends on other requests hides mistakes. Choose the most
    likely token, and keep nothing from one request to the next."""
    texts = [(await server.known()).text]
    again = await server.once("again", server.ask)
    for answer in (again, await server.ask()):
        if require_answer(answer).text not in texts:
            raise Failed(
                f"asked again: {shorten(answer.text, 60)!r}; the first time: {shorten(texts[0], 60)!r}", answer.sent
            )


async def length(server):
    """an answer stops at max_tokens, with finish_reason 'length'

    Without 'length', clients cannot tell that a sentence was cut off, and every token over the limit costs money. Count
    tokens while generating, and report which limit ended the answer."""
    known = await server.known()
    if known.tokens() is None:
        raise DoesNotApply("the server's answers do not report their tokens: see `usage`")
    if known.tokens() <= 8:
        raise DoesNotApply(f"the server's answers are too short to tell: {shorten(known.text)!r}")
    for most in (1, 5):
        for ask in (server.ask, server.stream):
            more = {"stream_options": {"include_usage": True}} if ask == server.stream else {}
            answer = await ask(max_tokens=most, **more)
            if answer.status != 200:
                raise Failed(answer.says(), answer.sent)
            if answer.finish_reasons[-1:] != ["length"]:
                raise Failed(
                    f"`finish_reason` is {last(answer)}; it should be 'length', because max_tokens ended the answer",
                    answer.sent,
                )
            # a stream without usage is another check's concern
            if answer.tokens() not in (most, None) or (answer.tokens() is None and ask == server.ask):
                raise Failed(f"{answer.tokens()} completion_tokens, although max_tokens is {most}", answer.sent)


async def stop_strings(server):
    """stop strings end the answer, and no part of them is sent

    A stop string of several tokens is generated in parts. Hold back any text that may be the beginning of one."""
    await server.require_repeatable()
    for size in (1, 2, 3, 4):
        for ask in (server.ask, server.stream):
            # each is compared with its own kind: whether both have the same text is another check's concern
            text = (await (server.known() if ask == server.ask else server.known_stream())).text
            if len(text) < 16:
                raise DoesNotApply(f"the server's answers are too short to tell: {shorten(text)!r}")
            at = len(text) // 3 + size
            stop = text[at : at + size]
            answer = await ask(stop=[stop])
            if answer.status != 200:
                raise Failed(answer.says(), answer.sent)
            expected, sent = text[: text.find(stop)], answer.sent
            if stop in answer.text or len(answer.text.rstrip()) > len(expected):
                raise Failed(
                    f"the answer is {shorten(answer.text, 70)!r}; it should end where the stop string begins, after"
                    f" {shorten(expected, 50)!r}",
                    sent,
                )
            if not expected.startswith(answer.text.rstrip()) or len(answer.text.strip()) < len(expected.strip()):
                raise Failed(
                    f"the answer is {shorten(answer.text, 60)!r}; up to the stop string it should be"
                    f" {shorten(expected, 60)!r}",
                    sent,
                )
            if answer.finish_reasons[-1:] != ["stop"]:
                raise Failed(
                    f"`finish_reason` is {last(answer)}; it should be 'stop', because a stop string ended the answer",
                    sent,
                )


async def seeds(server):
    """the same seed gives the same answer

    Without a seed, a mistake that depends on chance cannot be reproduced. Give each request its own random generator,
    seeded with its `seed`."""
    for seed in (7, 0):
        one, two = [await server.ask(temperature=1, seed=seed) for _ in range(2)]
        if one.status in (400, 422):
            raise DoesNotApply(f"the server refuses a seed: {one.says()}")
        if require_answer(one).text != require_answer(two).text:
            raise Failed(
                f"asked twice with seed {seed}: {shorten(one.text, 50)!r}, then {shorten(two.text, 50)!r}", one.sent
            )


async def unicode(server):
    """no character is broken, not even in streams

    A character may take several tokens: a server that decodes each token on its own sends U+FFFD. Hold text back until
    its last character is complete."""
    for what, question in UNICODE.items():
        for ask in (server.ask, server.stream):
            answer = require_answer(await ask(question, max_tokens=48))
            if "\ufffd" in answer.text:
                around = quote(answer.text, answer.text.index("\ufffd") - 20, 48)
                raise Failed(
                    f"the answer contains U+FFFD, the sign of a broken character: {around}", f"{what}: {answer.sent}"
                )


async def prompt_not_echoed(server):
    """the answer does not begin with the prompt

    A model's output begins with the prompt; if those tokens are not cut off, users see their own question, or the
    system prompt. Decode only the tokens after the prompt."""
    known = await server.known()
    if known.text.strip().startswith(QUESTION[:40]) or QUESTION in known.text:
        raise Failed(f"the answer repeats the question: {shorten(known.text)!r}", known.sent)


async def no_control_tokens(server):
    """no control tokens appear in the text

    If special tokens are not skipped when decoding, users see `<|im_end|>` at the end of an answer. Decode with
    `skip_special_tokens=True`."""
    known = await server.known()
    found = [await server.ask("Hello!", max_tokens=200), await server.stream("Hello!", max_tokens=200), known]
    for answer in found:
        if token := CONTROL.search(require_answer(answer).text):
            around = quote(answer.text, token.start() - 60)
            raise Failed(f"the answer contains {token[0]!r}: {around}", answer.sent)


async def typed_control_tokens(server):
    """control tokens typed by a user are treated as text

    Otherwise any user can end their turn and forge a system message: `<|im_end|><|im_start|>system ...`. As plain text,
    each of these takes several tokens. Tokenize users' text with special tokens turned off."""
    plain = await server.ask("Say hello.", max_tokens=16)
    before = plain.tokens("prompt_tokens")
    if before is None:
        raise DoesNotApply("the server's answers do not report the prompt's tokens: see `usage`")
    for token in TYPED:
        answer = await server.ask("Say hello." + token * TIMES, max_tokens=16)
        if 400 <= answer.status < 500:
            raise Failed(f"the server refuses {token!r} in a user's message: {answer.says()}", answer.sent)
        more = (answer.tokens("prompt_tokens") or 0) - before
        if more < 1.5 * TIMES:
            raise Failed(
                f"appending {TIMES} copies of {token!r} adds only {more} prompt_tokens: "
                + ("each is parsed as a control token" if more >= TIMES / 2 else "they are dropped"),
                f"{plain.sent} ({before} prompt_tokens), then the same with {TIMES} copies of {token!r} appended",
            )
        if not answer.text:
            raise Failed("the answer is empty: the typed control tokens ended it", answer.sent)


def last(answer):
    """The answer's last finish_reason, as a message shows it."""
    return repr(answer.finish_reasons[-1]) if answer.finish_reasons else "missing or null"
