"""Whether something else was using this computer while a lesson measured. If so, the lesson judges nothing."""

import contextlib
import os
import time

import psutil

from course.words import words

BUSY = 0.2
"""A share of all cores. If something else uses more, comparing two measured times says little."""
LOOK_S = 0.3
"""How long to look before and after a measurement, in seconds."""


class Watch:
    """The share of all cores that something else used `before`, `during` and `after` a measurement."""

    before = during = after = 0.0

    @property
    def busy(self) -> bool:
        return max(self.before, self.during, self.after) > BUSY

    def __str__(self):
        return words(
            "something else was using your computer's cores:"
            " {before} before the measurement, {during} during it, {after} after it",
            before=f"{self.before:.0%}",
            during=f"{self.during:.0%}",
            after=f"{self.after:.0%}",
        )


@contextlib.contextmanager
def watched():
    """Watch the computer before, during and after the measurement in the `with` block. Yields a Watch."""
    watch = Watch()
    with _share(watch, "before"):
        time.sleep(LOOK_S)
    with _share(watch, "during"):
        yield watch
    with _share(watch, "after"):
        time.sleep(LOOK_S)


@contextlib.contextmanager
def _share(watch, name):
    began, used = time.monotonic(), cpu_elsewhere()
    try:
        yield
    finally:
        seconds = (time.monotonic() - began) * (os.cpu_count() or 1)
        setattr(watch, name, min(1.0, max(0.0, (cpu_elsewhere() - used) / seconds)))


def cpu_elsewhere() -> float:
    """How many seconds of CPU have been used so far, except by this process and what it has started."""
    times = psutil.cpu_times()
    # a guest's time is already part of the user's
    waits = ("idle", "iowait", "guest", "guest_nice")
    everything = sum(times) - sum(getattr(times, name, 0.0) for name in waits)
    own = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            own += sum(child.cpu_times()[:4])
    return everything - own
