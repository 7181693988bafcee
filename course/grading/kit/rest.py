"""Whether a process is at rest: each of its threads sleeps, and none has run in between."""

import contextlib
import os
import time
from pathlib import Path

import psutil


class Resting:
    def __init__(self, pid):
        self._pid = pid
        self._tasks = Path(f"/proc/{pid}/task")

    def check(self, for_s=0.0003):
        """Whether it is at rest for so long."""
        before = self._look()
        time.sleep(for_s if self._tasks.is_dir() else max(for_s, 0.03))
        return before is not None and self._look() == before

    def _look(self):
        """How often each thread has run so far; None if one of them runs or could run."""
        if not self._tasks.is_dir():
            with contextlib.suppress(psutil.Error):
                return sum(psutil.Process(self._pid).cpu_times()[:2])
            return 0.0
        runs = {}
        with contextlib.suppress(OSError):
            for task in os.listdir(self._tasks):
                status = (self._tasks / task / "status").read_text()
                if "State:\tR" in status or "State:\tD" in status:
                    return None
                runs[task] = status[status.index("\nvoluntary_ctxt_switches") :]
        return runs
