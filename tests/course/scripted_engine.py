"""An engine by script, for a process that has to start in a moment: without torch.

What it does with an answer is the first id of its prompt.
"""

import os
import threading
import time
from types import SimpleNamespace

SAYS, DIES, IS_STUCK, FAILS, FAILS_OWN, IS_SILENT = range(6)
WINDOW = 64


class OwnError(Exception):
    pass


class Slots:
    slots, window, eos_token_ids, parameters = 4, WINDOW, {0}, 17

    def prefill(self, slot, ids):
        pass

    def step(self, slots, ids):
        time.sleep(0.001)


def load():
    return run, Slots(), None


def load_broken():
    raise OSError("no weights here")


def load_and_die():
    os._exit(3)


def run(slots, tokenizer, take, give):
    """Says "a", a token for each step, up to an answer's limit."""
    running = {}
    while (arrived := take(not running)) is not None:
        for what, key, *asked in arrived:
            if what == "leave":
                running.pop(key, None)
                continue
            ids, options = asked
            if len(ids) >= WINDOW:
                give([(key, ValueError(f"the prompt has {len(ids)} tokens, the window {WINDOW}"))])
            elif ids[0] == DIES:
                os._exit(3)
            elif ids[0] == IS_STUCK:
                threading.Event().wait()
            elif ids[0] == FAILS:
                give([(key, KeyError("no such key"))])
            elif ids[0] == FAILS_OWN:
                give([(key, OwnError("in its words"))])
            else:
                slots.prefill(0, ids)
                running[key] = [ids, options["limit"], 0]
        if running:
            slots.step([], [])
        outs = []
        for key, one in list(running.items()):
            ids, limit, _ = one
            one[2] += 1
            reason = "length" if one[2] == limit else None
            if reason:
                del running[key]
            if ids[0] != IS_SILENT or reason:
                outs.append((key, SimpleNamespace(
                    text="a", prompt_tokens=len(ids), completion_tokens=one[2], finish_reason=reason
                )))  # fmt: skip
        give(outs)
