"""In which line of the answer it hangs, waits, or failed. Used inside the room, but for `last_error`."""

import asyncio
import gc
import linecache
import re
import sys
import threading
import traceback
import types
import weakref

loops = weakref.WeakSet()
"""All event loops that were made since `remember_loops`."""


def remember_loops():
    """From now on the await chain of a task can be shown, whoever started its loop."""
    make = asyncio.events.new_event_loop

    def new_event_loop():
        loop = make()
        loops.add(loop)
        return loop

    asyncio.new_event_loop = asyncio.events.new_event_loop = new_event_loop


def lines_now(answer_file):
    """The answer's lines that block an event loop, wait in one, or run now, in this order."""
    opened = [loop for loop in list(loops) if not loop.is_closed()]
    threads_of_loops = [getattr(loop, "_thread_id", None) for loop in opened]
    blocking, waiting, running = [], [], []
    for loop in opened:
        for task in asyncio.all_tasks(loop):
            waiting.append(_await_chain(task.get_coro(), answer_file))
    # a task's chain ends where it waits for an async generator: those follow by themselves
    for thing in gc.get_objects():
        if type(thing) is types.AsyncGeneratorType and thing.ag_await is not None:
            waiting.append(_await_chain(thing, answer_file))
    own = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        if ident == own:
            continue
        for at, number in traceback.walk_stack(frame):
            if at.f_code.co_filename == answer_file:
                found = blocking if ident in threads_of_loops else running
                found.append(_line_of(at, number))
                break
    return list(dict.fromkeys(filter(None, blocking + waiting + running)))[:5]


def line_of_error(error, answer_file):
    """The last line of the answer in an error's traceback, or the one that does not parse; else None."""
    if isinstance(error, SyntaxError) and error.filename == answer_file:
        return f"line {error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    in_answer = [frame for frame in frames if frame.filename == answer_file]
    return _line(in_answer[-1].lineno, in_answer[-1].name, in_answer[-1].line) if in_answer else None


def last_error(log, answer_file):
    """(last line, line in the answer) of the last traceback in a log; None where there is none."""
    start = log.rfind("Traceback (most recent call last)")
    if start < 0:
        return None, None
    # in a group of exceptions the lines begin with "  | "
    lines = [re.sub(r"^ *\| ", "", line) for line in log[start:].splitlines()]
    where = None
    error = None
    for index, line in enumerate(lines):
        found = re.match(r'\s+File "(.+)", line (\d+), in (.+)', line)
        if found and found[1] == answer_file:
            source = lines[index + 1].strip() if index + 1 < len(lines) else ""
            where = f"line {found[2]}, in {found[3]}: {source}"
        if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)?(:|$)", line):
            error = error or line.strip()
    return error, where


def _await_chain(waiting, answer_file):
    links = []
    mine = False
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
        frame = frame or getattr(waiting, "gi_frame", None)
        if frame is not None:
            if frame.f_code.co_filename == answer_file:
                links.append(_line_of(frame, frame.f_lineno))
                mine = True
            elif mine:
                links.append(frame.f_code.co_name)
        waiting = (
            getattr(waiting, "cr_await", None)
            or getattr(waiting, "ag_await", None)
            or getattr(waiting, "gi_yieldfrom", None)
        )
    return " -> ".join(links[:6]) if mine else None


def _line_of(frame, number):
    return _line(number, frame.f_code.co_name, linecache.getline(frame.f_code.co_filename, number))


def _line(number, name, source):
    inside = "" if name == "<module>" else f", in {name}"
    return f"line {number}{inside}: {(source or '').strip()}"
