"""One of several processes that write into one log folder, in step with each other.

    python writer.py ANSWER FOLDER STEPS NUMBER OF

STEPS is a file of one byte for each of the OF processes: the round in which it is. Nobody is more than
a round ahead, so that they write at the same time whatever else the computer does.
"""

import importlib.util
import logging
import mmap
import sys
import time
from pathlib import Path

ROUNDS, LINES = 30, 2
"""A process writes LINES in each of its ROUNDS."""


def text(number, line):
    """The message of a process's line; with all that stands before it, less than 4,000 bytes."""
    return f"writer{number} line{line} {'x' * 3700} end of line{line}"


def pause_after_writes(frame, event, function):
    """A profiler that lets other processes write where this one has written: half a line is then seen."""
    if event == "c_return" and function.__name__ in ("write", "flush", "writelines"):
        time.sleep(0.0003)


def main(answer_file, folder, steps_file, number, of):
    spec = importlib.util.spec_from_file_location(Path(answer_file).stem, answer_file)
    answer = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = answer
    spec.loader.exec_module(answer)
    if number:
        answer.setup_logging(folder, load=lambda: (31.8, 93.2, 0))
    else:
        answer.setup_logging(folder)
    with open(steps_file, "r+b") as file:
        steps = mmap.mmap(file.fileno(), of)
    sys.setprofile(pause_after_writes)
    for round in range(ROUNDS):
        steps[number] = round + 1
        until = time.monotonic() + 5
        while min(steps[:]) < round and time.monotonic() < until:
            time.sleep(0.0002)
        for line in range(round * LINES, (round + 1) * LINES):
            logging.getLogger("writer").warning(text(number, line))
    sys.setprofile(None)
    steps[number] = 255  # the others need not wait for it
    logging.getLogger("writer").warning(f"greeting{number} 你好, whatever the locale")
    Path(f"{steps_file}-{number}").touch()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
