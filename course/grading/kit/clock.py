"""A clock that the test moves: it stands still otherwise, so that every time is exact.

clock = Clock()                       # in the test; its file goes to the scene
clock.move(0.5)
now = read_clock(clock_file); now()   # in the room: START + 0.5
set_clocks(clock_file)                # in the room: time.time() and the others say the same
"""

import contextlib
import datetime
import mmap
import os
import struct
import tempfile
import time

START = 1000.0
"""What the clock says at first, in seconds."""


def read_clock(file):
    """In the room: a function without arguments that returns the time that the test has set."""
    with open(file, "rb") as opened:
        memory = mmap.mmap(opened.fileno(), 8, access=mmap.ACCESS_READ)
    return lambda: struct.unpack("d", memory[:8])[0]


def set_clocks(file):
    """In the room: from now on Python's clocks say the time that the test has set, event loops' too.

    Not covered: names that were imported from `time` or `datetime` before, and what really waits.
    """
    now = read_clock(file)

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(now(), tz)

        @classmethod
        def utcnow(cls):
            return cls.now(datetime.UTC).replace(tzinfo=None)

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, now)
        setattr(time, f"{name}_ns", lambda: int(now() * 1e9))
    datetime.datetime = Moved


class Clock:
    """The test's end of it."""

    def __init__(self):
        self.now = START
        handle, self.file = tempfile.mkstemp(prefix="serving-qwen-clock-")
        os.write(handle, struct.pack("d", START))
        self._memory = mmap.mmap(handle, 8)
        os.close(handle)

    def move(self, seconds):
        """Moves it on by so many seconds."""
        self.now += seconds
        self._memory[:8] = struct.pack("d", self.now)

    def close(self):
        """Removes its file; in the room it goes on saying what it said last."""
        self._memory.close()
        with contextlib.suppress(OSError):  # Windows, while the room has it open
            os.unlink(self.file)
