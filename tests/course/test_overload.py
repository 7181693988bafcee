"""Clients of the lesson on overload: what they see of a server, and what `/metrics` says meanwhile."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from course.demos import overload, servers


@pytest.fixture
def url():
    """A server of three texts an answer; each third request is refused."""
    app, asked, left = FastAPI(), [], []

    @app.post("/v1/chat/completions")
    async def chat():
        asked.append(None)
        if len(asked) % 3 == 0:
            return JSONResponse({"error": {"message": "no"}}, 503)

        async def events():
            try:
                for text in ("", "Once", ' "upon', "content"):
                    delta = {"content": text.replace('"', '\\"')} if text else {"role": "assistant", "content": ""}
                    yield "data: " + str({"choices": [{"delta": delta}]}).replace("'", '"') + "\n\n"
                    await asyncio.sleep(0.01)
                yield "data: [DONE]\n\n"
            finally:
                left.append(None)

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/metrics")
    def metrics():
        text = f"# TYPE asked counter\nasked_total {len(asked)}.0\n# TYPE ended gauge\nended {len(left)}.0\n"
        return PlainTextResponse(text)

    server, url = servers.in_a_thread(app)
    yield url
    server.should_exit = True


def test_a_client_counts_texts_and_knows_when_it_was_refused(url):
    async def three():
        return [await overload.ask(url, 0.0) for _ in range(3)]

    one, two, refused = asyncio.run(three())
    for each in (one, two):
        assert (each.status, each.tokens) == (200, 3)
        assert 0 < each.ttft_s and each.first_s < each.ended_s
    assert (refused.status, refused.tokens, refused.ttft_s) == (503, 0, None)


def test_a_client_may_leave(url):
    asked = asyncio.run(overload.ask(url, 0.0, leave_after=1))
    assert asked.tokens == 1 and asked.first_s is not None


def test_a_flood_does_not_wait_for_answers(url):
    asked = asyncio.run(overload.flood(url, per_s=200, seconds=0.15))
    assert len(asked) == 30
    assert [each.at_s for each in asked] == sorted(each.at_s for each in asked)
    assert sum(each.status == 503 for each in asked) == 10


def test_capacity_counts_answers_alone(url):
    assert asyncio.run(overload.capacity(url, clients=3, seconds=0.2)) > 0


def test_what_is_watched_has_a_value_for_each_time(url):
    async def work():
        await overload.at_once(url, clients=2, rounds=1)
        await asyncio.sleep(0.3)
        return "done"

    async def watch():
        return await overload.watched(url, work())

    result, at_s, figures = asyncio.run(watch())
    assert result == "done" and len(at_s) > 1
    assert all(len(values) == len(at_s) for values in figures.values())
    # a counter is what it has grown, a gauge what it is
    assert figures["asked_total"][0] == 0 and sum(figures["asked_total"]) <= 2
    assert httpx.get(f"{url}/metrics").status_code == 200 and figures["ended"][-1] == 2
