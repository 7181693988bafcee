"""The chat model of 4.4's test, in each of the answer's copies.

It says what it does in `notes/PID`, a line of JSON each, and makes no step of a held answer that `allowed/KEY` does
not allow, both in the folder that COURSE_RAY_FOLDER names. An answer's key is the content of the last message.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ["COURSE_RAY_FOLDER"])
PIECES = ["Hello", ", ", "world", "!"]
"""Of every answer but the long one's."""
LONG = 400
"""Steps of the answer to a key that begins with `long`; each takes a moment."""


@dataclass(frozen=True)
class Piece:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


def load():
    note("load")
    return HeldModel()


def note(event, **more):
    line = json.dumps({"pid": os.getpid(), "event": event, **more}) + "\n"
    with open(FOLDER / "notes" / str(os.getpid()), "a", encoding="utf-8") as file:
        file.write(line)


class HeldModel:
    running = 0
    """In this process, whoever has made how many of these."""

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        key = messages[-1]["content"]
        HeldModel.running += 1
        note("begun", key=key, running=HeldModel.running)
        finished = False
        try:
            if key == "refused":
                raise ValueError("the prompt has 9001 tokens, and the model's window holds 4096")
            if key == "fails":
                raise RuntimeError("the model is out of order")
            pieces = ["word "] * LONG if key.startswith("long") else PIECES
            for number, piece in enumerate(pieces, 1):
                await self._step(key, number)
                yield Piece(piece, 5, number)
            await self._step(key, len(pieces) + 1)
            finished = True
            yield Piece("", 5, len(pieces) + 1, "stop")
        finally:
            HeldModel.running -= 1
            note("finished" if finished else "left", key=key)

    async def _step(self, key, number):
        if key.startswith("long"):
            await asyncio.sleep(0.02)
        while key.startswith("held") and allowed(key) < number:
            await asyncio.sleep(0.01)
        note("step", key=key)


def allowed(key):
    try:
        return int((FOLDER / "allowed" / key).read_text())
    except (OSError, ValueError):
        return 0
