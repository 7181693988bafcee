"""`course audit URL`: is this server honest? A black-box examination of an OpenAI-compatible chat server.

Each check is an async function that takes a `Server`. The first line of its docstring says what should hold, and the
rest says why that matters. It returns a fact to print, or None; or it raises Failed or DoesNotApply.

Not covered: whether what an answer says is right, tools, images, log probabilities, other endpoints.
"""

import asyncio
import inspect
import time
from dataclasses import asdict, dataclass

from course.audit import load, protocol, refusals, text
from course.audit.server import DoesNotApply, Failed, Server
from course.words import marked

CHECKS = {
    "models": protocol.models,
    "answer-shape": protocol.answer_shape,
    "stream-shape": protocol.stream_shape,
    "streaming": protocol.streaming,
    "repeatable": text.repeatable,
    "stream-text": protocol.stream_text,
    "usage": protocol.usage,
    "stream-usage": protocol.stream_usage,
    "official-client": protocol.official_client,
    "length": text.length,
    "stop-strings": text.stop_strings,
    "seeds": text.seeds,
    "unicode": text.unicode,
    "prompt-not-echoed": text.prompt_not_echoed,
    "no-control-tokens": text.no_control_tokens,
    "typed-control-tokens": text.typed_control_tokens,
    "wrong-bodies": refusals.wrong_bodies,
    "unknown-model": refusals.unknown_model,
    "errors-tell-nothing": refusals.errors_tell_nothing,
    "other-requests": refusals.other_requests,
    "clients-at-once": load.clients_at_once,
    "dropped-streams": load.dropped_streams,
    "dropped-answers": load.dropped_answers,
    "long-prompts": load.long_prompts,
    "slow-readers": load.slow_readers,
    "overload": load.overload,
    "too-long": refusals.too_long,
}
"""{id: check}, in the order in which they run: those that others rely on first, those that may do harm last."""

LIMIT_S = 180
CHECK_LIMIT_S = 75
PASSED, FAILED, DOES_NOT_APPLY = marked("passed"), marked("failed"), marked("does not apply")


class CannotAudit(Exception):
    """There is nothing to examine. The message says why and what to do."""


@dataclass
class Result:
    id: str
    title: str
    why: str
    status: str
    sent: str = ""
    got: str = ""
    """What was seen, or why the check does not apply."""
    seconds: float = 0.0
    requests: int = 0

    def as_json(self):
        return asdict(self)


def new_result(id):
    """The result of a check that has not been run."""
    title, _, why = inspect.getdoc(CHECKS[id]).partition("\n\n")
    return Result(id, " ".join(title.split()), " ".join(why.split()), DOES_NOT_APPLY)


async def audit(server: Server, only=None, show=lambda result: None) -> list[Result]:
    """Examine the server.

    Args:
        server: not opened yet. If it has no `model`, the first one that the server lists is used.
        only: ids of checks; None means all.
        show: called with each result, as soon as it is available.

    Raises:
        CannotAudit: no server answers at that address, or there is no model to ask for.
    """
    results, until = [], time.monotonic() + LIMIT_S
    async with server:
        await _find_model(server)
        for id in only or CHECKS:
            result, began, before = new_result(id), time.monotonic(), server.requests
            left_s = until - began
            try:
                if left_s <= 0:
                    raise DoesNotApply(f"not tried: the audit's limit of {LIMIT_S} s has been reached")
                async with asyncio.timeout(min(CHECK_LIMIT_S, left_s)):
                    result.got = await CHECKS[id](server) or ""
                result.status = PASSED
            except Failed as failed:
                result.status, result.got, result.sent = FAILED, failed.got, failed.sent or ""
            except DoesNotApply as reason:
                result.got = str(reason)
            except TimeoutError:
                if left_s > CHECK_LIMIT_S:
                    result.status, result.sent = FAILED, server.last_sent
                    result.got = f"this check did not finish within {CHECK_LIMIT_S} s"
                else:
                    result.got = f"not finished: the audit's limit of {LIMIT_S} s has been reached"
            result.seconds, result.requests = time.monotonic() - began, server.requests - before
            results.append(result)
            show(result)
    return results


async def _find_model(server):
    try:
        answer = await server.send("GET", "/models")
    except Failed as failed:
        raise CannotAudit(f"No server answers at {server.url}: {failed.got}") from None
    if server.model:
        return
    if answer.status in (401, 403):
        key = "use --api-key-env NAME to say which environment variable holds it"
        raise CannotAudit(f"{server.url} needs a key ({answer.status}): {key}")
    listed = answer.json.get("data") if isinstance(answer.json, dict) else None
    ids = [each.get("id") for each in listed or [] if isinstance(each, dict)]
    if not ids:
        raise CannotAudit(f"{server.url}/models lists no models ({answer.status}): name one with --model NAME")
    server.model = ids[0]
