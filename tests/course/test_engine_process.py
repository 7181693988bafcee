"""The engine in a process of its own: what it hands on, what it survives, and that it does not outlive its server."""

import asyncio
import os
import signal
import subprocess
import sys

import psutil
import pytest
from scripted_engine import DIES, FAILS, FAILS_OWN, IS_SILENT, IS_STUCK, SAYS, WINDOW, load, load_and_die, load_broken
from served import LIMIT_S, wait_for

from course.lessons.engine_process import HELLO, RESTARTS, WITHIN_S, Engine, EngineError
from course.manifest import ROOT


def encode(messages):
    """A prompt's ids stand in its text."""
    return [SAYS] if messages == HELLO else [int(id) for id in messages[-1]["content"].split()]


def ask(engine, *ids, **options):
    return engine.chat([{"role": "user", "content": " ".join(map(str, ids))}], **options)


async def text_of(engine, *ids, **options):
    return "".join([piece.text async for piece in ask(engine, *ids, **options)])


async def holds(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def play(scene, load=load, **options):
    """Runs the scene beside an engine that is ready."""

    async def with_engine():
        async with asyncio.timeout(2 * LIMIT_S), Engine(load, encode, **options) as engine:
            await holds(lambda: engine.ready)
            await scene(engine)
            await holds(lambda: engine.answering == 0)
            return engine

    engine = asyncio.run(with_engine())
    assert not engine.alive
    return engine


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


both = pytest.mark.parametrize("thread", [False, True])


@both
def test_it_hands_on_pieces_counts_reasons_and_errors(thread):
    async def scene(engine):
        pieces = [piece async for piece in ask(engine, SAYS, 2, 3, max_tokens=3)]
        assert pieces == [("a", 3, 1, None), ("a", 3, 2, None), ("a", 3, 3, "length")]
        assert await asyncio.gather(*(text_of(engine, SAYS, max_tokens=n) for n in range(1, 65))) == [
            "a" * n for n in range(1, 65)
        ]
        with pytest.raises(KeyError, match="no such key"):
            await text_of(engine, FAILS)
        with pytest.raises(RuntimeError, match="OwnError: in its words"):
            await text_of(engine, FAILS_OWN)
        assert await text_of(engine, SAYS, max_tokens=2) == "aa"
        # one prefill and as many steps as tokens; the first was asked as a greeting
        assert engine.tokens == 1 + 3 + sum(range(1, 65)) + 2

    play(scene, thread=thread)


@both
def test_a_prompt_over_the_window_is_refused_before_any_step(thread):
    async def scene(engine):
        before = engine.steps
        with pytest.raises(ValueError, match=f"{WINDOW + 1}.*{WINDOW}"):
            await text_of(engine, *[SAYS] * (WINDOW + 1))
        await text_of(engine, SAYS, max_tokens=1)
        assert engine.steps == before + 2

    play(scene, thread=thread)


@both
@pytest.mark.parametrize("how", ["aclose", "cancel", "cancel before a piece"])
def test_who_leaves_costs_no_more_steps(thread, how):
    async def scene(engine):
        answer = ask(engine, IS_SILENT if how == "cancel before a piece" else SAYS)
        if how == "aclose":
            await anext(answer)
            await answer.aclose()
        else:
            before = engine.steps

            async def read():
                async for _ in answer:
                    pass

            reader = asyncio.create_task(read())
            await holds(lambda: engine.steps > before)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
        assert engine.answering == 0
        # what is asked next is taken behind the leaving
        await text_of(engine, SAYS, max_tokens=1)
        made = engine.steps
        await text_of(engine, SAYS, max_tokens=5)
        assert engine.steps == made + 1 + 5

    play(scene, thread=thread)


def ends(engine, how):
    if how == "killed":
        os.kill(engine.loaded["pid"], signal.SIGKILL)
        return None
    return asyncio.ensure_future(text_of(engine, {"dies": DIES, "stuck": IS_STUCK}[how]))


@pytest.mark.parametrize("how", ["killed", "dies", "stuck"])
def test_a_lost_engine_fails_its_answers_and_another_one_starts(how):
    async def scene(engine):
        answers = [ask(engine, SAYS) for _ in range(3)]
        for answer in answers:
            assert (await anext(answer)).text == "a"
        pid = engine.loaded["pid"]
        last = ends(engine, how)
        for answer in answers:
            with pytest.raises(EngineError, match="lost"):
                async for _ in answer:
                    pass
        if last:
            with pytest.raises(EngineError):
                await last
        assert not engine.alive and not engine.ready and not psutil.pid_exists(pid)
        with pytest.raises(EngineError, match="another one is being started"):
            await text_of(engine, SAYS)
        await holds(lambda: engine.ready)
        assert engine.loaded["pid"] != pid and engine.restarts == 1
        assert await text_of(engine, SAYS, max_tokens=3) == "aaa"

    play(scene, stuck_after_s=3.0 if how == "stuck" else 120.0)


def test_a_stuck_thread_is_left_to_itself():
    async def scene(engine):
        with pytest.raises(EngineError, match="said nothing for 2 s"):
            await text_of(engine, IS_STUCK)
        await holds(lambda: engine.ready)
        assert await text_of(engine, SAYS, max_tokens=3) == "aaa"

    play(scene, thread=True, stuck_after_s=2.0)


def test_an_engine_whose_answers_have_no_text_for_long_is_not_stuck():
    async def scene(engine):
        assert await text_of(engine, IS_SILENT, max_tokens=5000) == "a"
        assert engine.restarts == 0

    # some five seconds of steps
    play(scene, stuck_after_s=3.0)


def test_it_is_started_again_at_most_three_times_a_minute():
    clock = Clock()

    async def scene(engine):
        for n in range(RESTARTS):
            os.kill(engine.loaded["pid"], signal.SIGKILL)
            await holds(lambda: engine.restarts == n + 1 and engine.ready)
            clock.now += 1
        os.kill(engine.loaded["pid"], signal.SIGKILL)
        await holds(lambda: not engine.alive)
        clock.now = WITHIN_S - 0.1
        await asyncio.sleep(1)
        assert engine.restarts == RESTARTS and not engine.alive
        clock.now = WITHIN_S + 0.1
        await holds(lambda: engine.ready)
        assert engine.restarts == RESTARTS + 1

    play(scene, clock=clock)


@pytest.mark.parametrize(
    ("load", "words", "thread"),
    [
        (load_broken, "no weights here", False),
        (load_broken, "no weights here", True),
        (load_and_die, "before it had loaded", False),
        (lambda: None, "could not be started: .*pickle", False),
    ],
)
def test_one_that_cannot_start_or_load_says_why(load, words, thread):
    engine = Engine(load, encode, thread=thread)
    try:
        with pytest.raises(EngineError, match=words):
            engine.wait_until_loaded()
    finally:
        engine.close()


SERVER = """
import asyncio, sys
from scripted_engine import IS_STUCK, SAYS, load
from course.lessons.engine_process import HELLO, Engine

def encode(messages):
    return [SAYS if messages == HELLO else int(sys.argv[1])]

async def main():
    async with Engine(load, encode) as engine:
        while not engine.ready:
            await asyncio.sleep(0.01)
        answer = asyncio.create_task(anext(engine.chat([{"role": "user", "content": "hi"}])))
        await asyncio.sleep(0.1)
        print(engine.loaded["pid"], flush=True)
        await asyncio.sleep(1000)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("does", [SAYS, IS_STUCK])
def test_it_ends_when_its_server_is_killed(tmp_path, does):
    (tmp_path / "server.py").write_text(SERVER)
    paths = os.pathsep.join([str(ROOT), os.path.dirname(__file__)])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, tmp_path / "server.py", str(does)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        pid = int(server.stdout.readline())
        assert psutil.pid_exists(pid)
        server.kill()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
