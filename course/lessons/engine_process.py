"""An engine of exercise 4.1 in its own process, and a chat model in the server's process that talks to it.

In one process, the model's loop and the server's loop would share an interpreter and compete for its lock. Here they
share a pipe instead: everything asked since the last message is one message, and everything that a prefill or a step
produced is another. The lesson compares this with the same engine in a thread.

    async with Engine(load, encode) as engine:
        async for piece in engine.chat([{"role": "user", "content": "你好"}]):
            print(piece.text, end="")

Not covered: engines on other machines, and a second event loop.
"""

import asyncio
import builtins
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from typing import NamedTuple

from course.lessons.engine_worker import CLOSE_S, ProcessWorker, ThreadWorker

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 120.0
"""On a slow computer, a single call to the model takes tens of seconds for a long prompt."""
RESTARTS, WITHIN_S = 3, 60.0
"""An engine that ends is started again, at most RESTARTS times in WITHIN_S seconds."""
HELLO = [{"role": "user", "content": "Hello"}]


class EngineError(RuntimeError):
    """There is no engine, or it ended in the middle of an answer. The message says what is known."""


class Piece(NamedTuple):
    """A Piece of exercise 3.5, without torch."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None


class Engine:
    """A chat model as in exercise 3.6 whose answers are generated elsewhere.

    If the engine is killed, or says nothing for `stuck_after_s` seconds while it is answering, it is abandoned:
    its answers end with an EngineError, and another engine is started, at most RESTARTS times in WITHIN_S seconds.

    Attributes:
        alive: whether there is an engine that has loaded.
        ready: whether that engine has also answered once: it is asked for a token as soon as it has loaded.
        answering: how many answers are in progress.
        steps: how many calls to the model there have been, prefills and steps.
        tokens: how many tokens all answers have had so far.
        restarts: how many engines have been started after the first.
        loaded: what is known about the model, {"slots", "window", "parameters", "pid"}.
    """

    def __init__(self, load, encode, *, thread=False, stuck_after_s=STUCK_AFTER_S, clock=time.monotonic):
        """Start the engine, and return before it has loaded.

        Args:
            load: called in the engine's process; returns (run, slots, tokenizer), with `run` as in exercise 4.1.
                It is pickled, so it must be a function of a module, or a partial of one.
            encode: turns messages into a prompt's ids; called in this process.
            thread: use a thread of this process instead of another process. A stuck thread is left to itself.
            stuck_after_s: how long an engine that is answering may say nothing.
            clock: the clock for the limit on restarts, in seconds.
        """
        self.ready, self.loaded = False, {}
        self.steps, self.tokens, self.restarts = 0, 0, 0
        self._load, self._encode, self._thread = load, encode, thread
        self._stuck_after_s, self._clock = stuck_after_s, clock
        self._worker, self._steps_before, self._starts = None, 0, []
        self._answers, self._keys, self._loop = {}, itertools.count(), None
        self._heard_at, self._watch_is_set = 0.0, False
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._first, self._failure = threading.Event(), None
        self._start(again=False)

    @property
    def alive(self):
        return bool(self.loaded)

    @property
    def answering(self):
        return len(self._answers)

    def wait_until_loaded(self):
        """Return when the first engine has loaded.

        Raises:
            EngineError: it could not load; the message is the engine's own.
        """
        self._first.wait()
        if not self.alive:
            raise EngineError(self._failure or "The engine ended before it had loaded.")

    async def __aenter__(self):
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self.wait_until_loaded)
        except BaseException:
            self.close()
            raise
        self._warm = self._loop.create_task(self._warm_up())
        return self

    async def __aexit__(self, *_):
        self._warm.cancel()
        await asyncio.to_thread(self.close)

    def close(self):
        """End the engine. Answers in progress end with an error. A second call does nothing."""
        self._closed.set()
        worker = self._worker
        if worker is not None:
            # an engine that is still loading would not hear of it
            worker.close() if self.alive else worker.kill()
        with self._lock:
            keeper = self._keeper
        keeper.join(CLOSE_S + 1)

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        """Answer a conversation as in exercise 3.6: read it with `async for`, and leave at any time.

        Raises:
            ValueError: the prompt fills or exceeds the window. Raised before any step.
            EngineError: there is no engine, or it has ended or was stuck.
            Whatever the model raised: a built-in error with its type, any other as a RuntimeError that names the type.
        """
        prompt_ids = self._encode(messages)
        options = {"limit": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": list(stop)}
        worker = self._worker
        if worker is None or not self.alive:
            raise EngineError("The engine has ended, and another one is being started.")
        if not self._answers:
            self._watch_from_now()
        key, answer = next(self._keys), _Answer(self._loop)
        self._answers[key] = answer
        worker.put(("ask", key, prompt_ids, options))
        try:
            while True:
                piece = answer.come.popleft() if answer.come else await answer.next()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            # an answer that has ended, with its last piece, an error or its engine, is no longer in the dict
            if self._answers.pop(key, None):
                worker.put(("leave", key))

    # the engine's life, in a thread for each engine

    def _start(self, again):
        # `close` may be called by another thread, and joins only what has been started
        with self._lock:
            self._keeper = threading.Thread(target=self._keep, args=(again,), name="engine", daemon=True)
            self._keeper.start()

    def _keep(self, again):
        if again and not self._may_start():
            return
        worker = None
        try:
            worker = self._worker = (ThreadWorker if self._thread else ProcessWorker)(self._load)
            if self._closed.is_set():
                worker.close()
            worker.work(lambda *message: self._heard(worker, *message))
        except Exception as error:
            logger.exception("the engine failed")
            if worker is None:
                self._failure = f"its worker could not be started: {type(error).__name__}: {error}"
        self._lost(worker, "it has ended")

    def _may_start(self):
        """Wait until another start is allowed. Returns whether it is: after `close`, no engine is started."""
        while not self._closed.wait(0.05):
            now = self._clock()
            self._starts = [start for start in self._starts if now - start < WITHIN_S]
            if len(self._starts) < RESTARTS:
                self._starts.append(now)
                self.restarts += 1
                return True
        return False

    def _heard(self, worker, what, *said):
        with self._lock:
            if worker is not self._worker:
                return
            if what == "loaded":
                [self.loaded] = said
            elif what == "failed":
                [self._failure] = said
            else:
                self.steps = self._steps_before + said[0]
        if what == "gave":
            self._call(self._deliver, said[1])
        elif what == "loaded":
            if self._first.is_set():
                self._call(lambda: setattr(self, "_warm", self._loop.create_task(self._warm_up())))
            self._first.set()

    def _lost(self, worker, how):
        """Fail the engine's answers, and start another engine."""
        with self._lock:
            if worker is not self._worker:
                return
            self._worker, self.loaded, self.ready = None, {}, False
            self._steps_before = self.steps
        if worker is not None:
            worker.kill()
        self._call(self._fail, how)
        if not self._closed.is_set():
            logger.error("engine lost: %s; starting another one", how)
            self._start(again=True)
        self._first.set()

    def _call(self, function, *arguments):
        with contextlib.suppress(RuntimeError):  # the loop is closed: no one is waiting for an answer
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, *arguments)

    # on the event loop

    def _deliver(self, outs):
        self._heard_at = self._loop.time()
        for key, *out in outs:
            answer = self._answers.get(key)
            if answer is None:
                continue  # its reader has left
            if len(out) == 2:
                piece, last = _error(*out), True
            else:
                piece = Piece._make(out)
                last = piece.finish_reason
                self.tokens += piece.completion_tokens - answer.tokens
                answer.tokens = piece.completion_tokens
            if last:
                del self._answers[key]
            answer.put(piece)

    def _fail(self, how):
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.put(EngineError(f"The engine was lost while answering: {how}."))

    async def _warm_up(self):
        worker = self._worker
        try:
            async for _ in self.chat(HELLO, max_tokens=1, temperature=0.0):
                pass
            with self._lock:
                self.ready = worker is self._worker and self.alive
        except Exception:
            logger.exception("the engine does not answer")

    def _watch_from_now(self):
        self._heard_at = self._loop.time()
        if not self._watch_is_set:
            self._watch_is_set = True
            self._loop.call_later(self._stuck_after_s, self._watch)

    def _watch(self):
        left_s = self._heard_at + self._stuck_after_s - self._loop.time()
        self._watch_is_set = bool(self._answers) and left_s > 0
        if self._watch_is_set:
            self._loop.call_later(left_s, self._watch)
        elif self._answers and self._worker is not None:
            self._lost(self._worker, f"it said nothing for {self._stuck_after_s:g} s")


class _Answer:
    """The pieces of an answer that have arrived but have not been read yet."""

    def __init__(self, loop):
        self.come, self.tokens, self._loop, self._waiter = deque(), 0, loop, None

    def put(self, piece):
        self.come.append(piece)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self):
        self._waiter = self._loop.create_future()
        await self._waiter
        return self.come.popleft()


def _error(name, message):
    kind = getattr(builtins, name, None)
    with contextlib.suppress(TypeError):  # some take more than a message
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind(message)
    return RuntimeError(f"{name}: {message}")
