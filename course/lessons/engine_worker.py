"""Where an engine of exercise 4.1 runs: in a process, or in a thread of the server. The Engine in `engine_process.py`
uses both in the same way: whatever it passes to `put` reaches the engine, and `work` passes on what the engine says.

    "loaded", {"slots", "window", "parameters", "pid"}    or "failed", why
    "gave", calls to the model so far, [(key, text, prompt_tokens, completion_tokens, finish_reason), ...]
                                          for an error: (key, the name of its type, its message)
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import threading
import time

BEAT_S = 0.25
"""A running engine reports at least once in this many seconds, even while no answer has any text."""
CLOSE_S = 2.0
"""How long an engine may take to end when told to."""


class ThreadWorker:
    """An engine in the thread that calls `work`."""

    def __init__(self, load):
        self._load, self._inbox = load, queue.SimpleQueue()
        self.put = self._inbox.put

    def work(self, heard):
        _work(self._load, lambda wait: _all_of(self._inbox, wait), heard)

    def close(self):
        self._inbox.put(None)

    kill = close


class ProcessWorker:
    """An engine in its own process, which ends together with this process, however this one ends."""

    def __init__(self, load):
        spawn = multiprocessing.get_context("spawn")
        self._connection, its_end = spawn.Pipe()
        self._process = spawn.Process(target=_in_process, args=(its_end, load), name="engine", daemon=True)
        self._process.start()
        its_end.close()
        self._outbox = queue.SimpleQueue()
        self.put = self._outbox.put
        # in a thread: an engine that does not read would block the sender
        threading.Thread(target=self._send, daemon=True).start()

    def work(self, heard):
        with contextlib.suppress(EOFError, OSError):
            while True:
                heard(*self._connection.recv())

    def _send(self):
        with contextlib.suppress(OSError):
            while (items := _all_of(self._outbox, True)) is not None:
                _send(self._connection, items)
            _send(self._connection, None)

    def close(self):
        self._outbox.put(None)
        self._process.join(CLOSE_S)
        self.kill()

    def kill(self):
        self._outbox.put(None)
        self._process.kill()
        self._process.join()


def _send(connection, message):
    # like `connection.send`, but faster: that one also looks for objects that need special treatment
    connection.send_bytes(pickle.dumps(message))


def _all_of(inbox, wait):
    """A list of what has arrived; with `wait`, block until there is something. None after the end."""
    items = []
    with contextlib.suppress(queue.Empty):
        while (item := inbox.get(wait and not items)) is not None:
            items.append(item)
        inbox.put(None)
        return items or None
    return items


# in the engine


def _in_process(connection, load):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def receive(wait):
        items = []
        while (wait and not items) or connection.poll():
            message = connection.recv()
            if message is None:
                return None
            items += message
        return items

    with contextlib.suppress(EOFError, OSError):
        _work(load, receive, lambda *message: _send(connection, message))


def _end_with_parent():
    # this works even while a call to the model is stuck
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(load, receive, tell):
    """Load everything, and run the engine's loop until `receive` returns None."""
    try:
        run, slots, tokenizer = load()
        slots = _Counted(slots)
    except Exception as error:
        tell("failed", str(error) or type(error).__name__)
        raise
    tell("loaded", {"slots": slots.slots, "window": slots.window, "parameters": slots.parameters, "pid": os.getpid()})
    told_steps, told_at = 0, time.monotonic()

    def give(outs):
        nonlocal told_steps, told_at
        if outs:
            told_steps, told_at = slots.steps, time.monotonic()
            tell("gave", told_steps, [_packed(key, out) for key, out in outs])

    def take(wait):
        nonlocal told_steps, told_at
        if slots.steps != told_steps and (wait or time.monotonic() - told_at > BEAT_S):
            told_steps, told_at = slots.steps, time.monotonic()
            tell("gave", told_steps, [])
        return receive(wait)

    run(slots, tokenizer, take, give)


def _packed(key, out):
    if isinstance(out, Exception):
        return key, type(out).__name__, str(out)
    return key, out.text, out.prompt_tokens, out.completion_tokens, out.finish_reason


class _Counted:
    """A slot model that counts its calls."""

    def __init__(self, slots):
        self._slots, self.steps = slots, 0
        self.slots, self.window, self.eos_token_ids = slots.slots, slots.window, slots.eos_token_ids
        self.parameters = getattr(slots, "parameters", 0)

    def prefill(self, slot, ids):
        self.steps += 1
        return self._slots.prefill(slot, ids)

    def step(self, slots, ids):
        self.steps += 1
        return self._slots.step(slots, ids)
