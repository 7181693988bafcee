"""What runs inside the room: the process that holds the answer.

The main thread runs one scene after the other; a second thread answers questions while a scene is
running (what the probe has seen, which requests have arrived, in which line the answer hangs).
Results leave as JSON made of exact built-in types, so that nothing of the answer's can pretend.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib
import importlib.util
import inspect
import json
import linecache
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
import traceback
import types
import weakref
from pathlib import Path

from course.grading.probe import Probe

OUTPUTS = ("printed", "logged")
"""The files of the standard output and of the standard error, where logs and tracebacks go."""
MOST_OUTPUT = 4_000_000
"""Bytes of output that are kept while the answer runs; older ones are dropped."""


def main(connection, answer_file, tests_file, folder):
    """The room's whole life: answers requests from `connection` until it closes."""
    _settle(connection, folder)
    inside = Inside(Path(answer_file), Path(tests_file), connection)
    threading.Thread(target=inside.listen, daemon=True).start()
    threading.Thread(target=_bound_output, args=(folder,), daemon=True).start()
    inside.work()


def _settle(connection, folder):
    if hasattr(os, "setsid"):
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the room dies with its runner
    os.chdir(os.path.join(folder, "cwd"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    keep_all = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    printed, logged = (os.open(os.path.join(folder, name), keep_all, 0o600) for name in OUTPUTS)
    hung = os.open(os.path.join(folder, "hung"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    os.dup2(printed, 1)
    os.dup2(logged, 2)
    if hasattr(os, "fork"):
        # nothing that the runner has open (its report above all) may be within the answer's reach;
        # not closed but replaced, since objects of the runner's still close those numbers one day
        keep = {0, 1, 2, connection.fileno(), nothing, hung}
        for fd in range(3, 1024):
            if fd not in keep:
                with contextlib.suppress(OSError):
                    os.fstat(fd)
                    os.dup2(nothing, fd, inheritable=False)
    sys.stdin = open(0, closefd=False, encoding="utf-8")
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", closefd=False, encoding="utf-8", errors="replace", buffering=1)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    logging.lastResort = logging.StreamHandler(sys.stderr)
    # pytest, from whose process this one was forked, keeps such errors and all logs to itself
    logging.root.handlers.clear()
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=hung, all_threads=True)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    if torch := sys.modules.get("torch"):
        # after a fork torch renews its thread pool at the first use, and of two threads that use
        # it first at once (transformers loads weights in threads) one may find none
        torch.set_num_threads(1)


def _bound_output(folder):
    paths = [os.path.join(folder, name) for name in OUTPUTS]
    while True:
        time.sleep(0.2)
        for path in paths:
            with contextlib.suppress(OSError):
                if os.path.getsize(path) > MOST_OUTPUT:
                    os.truncate(path, 0)


class Inside:
    """The room as a scene sees it. A scene is a function `scene(answer, inside, **arguments)` of the
    tests file or of the kit, plain or async; `answer` is the answer's module."""

    def __init__(self, answer_file, tests_file, connection):
        self.answer_file, self.tests_file = answer_file, tests_file
        self.answer = None
        self.notes = {}
        """What a scene wants the test to see while the scene still runs: JSON only."""
        self.kept = {}
        """What scenes keep for later ones, by name: objects of any kind."""
        self._connection = connection
        self._sending = threading.Lock()
        self._scenes = queue.Queue()
        self._events = {}
        self._probe = None
        self._loops = weakref.WeakSet()
        self._arrived = {}
        self._servers = []
        self._server_threads = set()
        self._remember_loops()

    # for scenes

    @functools.cached_property
    def tiny(self):
        """(model, tokenizer) of the tiny Qwen in float32, with the probe on it."""
        from course.qwen import models

        model, tokenizer = models.tiny()
        self._probe = Probe(model, tokenizer)
        return model, tokenizer

    @functools.cached_property
    def tiny_without_layers(self):
        """`tiny`, but its decoder computes nothing, so that a step takes a tenth of the time. For
        tests in which the probe says what the model says."""
        model, tokenizer = self.tiny
        model.model.forward = functools.partial(_without_layers, model.config)
        return model, tokenizer

    @property
    def probe(self):
        assert self.tiny
        return self._probe

    def event(self, name):
        """A threading.Event that the test sets with `room.set(name)`."""
        return self._events.setdefault(name, threading.Event())

    def arrived(self, path):
        """How many requests for that path have reached the served apps so far."""
        return self._arrived.get(path, 0)

    def serving(self):
        """Whether a served app has finished its start-up and takes requests."""
        return any(server.started for server in self._servers)

    def on_a_servers_loop(self):
        """Whether the thread that asks is one in which a served app's event loop runs: while it
        waits, the loop is blocked."""
        return threading.get_ident() in self._server_threads

    def solution(self, file):
        """The reference answer of that file, as a module: a part around the answer."""
        from course.manifest import ROOT

        return load_module(ROOT / "solutions" / file)

    @staticmethod
    def plain(value):
        """The value if it is JSON of exact built-in types, else {"type": its type's name}."""
        return plain(value)

    def outcome(self, call, *args, **kwargs):
        """{"value": ...} or {"raised": names of the error's types, "message": ..., "where": ...}."""
        try:
            return {"value": plain(call(*args, **kwargs))}
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            if _is_stub(error):
                raise
            kinds = [kind.__name__ for kind in type(error).__mro__]
            described = self.describe(error)
            return {"raised": kinds, "message": described["message"], "where": described["where"]}

    # requests

    def listen(self):
        while True:
            try:
                request = json.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                os._exit(0)
            if request["op"] in ("load", "play", "serve"):
                self._scenes.put(request)
            else:
                threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def work(self):
        while True:
            self._answer(self._scenes.get())

    def _answer(self, request):
        try:
            reply = {"result": getattr(self, f"_op_{request['op']}")(**request["arguments"])}
        except BaseException as error:  # noqa: BLE001 - also SystemExit and KeyboardInterrupt
            reply = {"error": self.describe(error)}
        sys.stdout.flush()
        message = json.dumps({"id": request["id"], **reply}).encode()
        with self._sending:
            self._connection.send_bytes(message)

    def _op_load(self, needs, parts):
        # what the answer imports of other exercises is the reference's: each is graded alone
        sys.path.append(parts)
        self.answer = load_module(self.answer_file)
        for name, parameters in needs.items():
            found = getattr(self.answer, name, None)
            if found is None:
                return {"missing": name}
            if parameters is None:
                if not isinstance(found, type):
                    return {"not_a_class": name}
            elif not callable(found):
                return {"missing": name}
            elif problem := _signature_problem(found, parameters):
                return {"signature": name, "problem": problem}
        return {}

    def _scene(self, module, scene):
        in_course = module.partition(".")[0] == "course"
        found = importlib.import_module(module) if in_course else load_module(self.tests_file)
        return getattr(found, scene)

    def _op_play(self, module, scene, arguments):
        result = self._scene(module, scene)(self.answer, self, **arguments)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        json.dumps(result, allow_nan=False)
        return result

    def _op_serve(self, module, scene, arguments):
        import uvicorn

        app = self._scene(module, scene)(self.answer, self, **arguments)
        if inspect.iscoroutine(app) or not callable(app):
            return {"no_app": "a coroutine" if inspect.iscoroutine(app) else type(app).__name__}
        # no reuse of the address: connections to a server that died must fail, not wait
        # asyncio sets TCP_NODELAY only where the protocol is named; without it each reply waits 40 ms
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            self._count_arrivals(app),
            loop="asyncio",
            lifespan="on",
            log_level="info",
            access_log=False,
            # uvicorn would take a client on this machine for a proxy, and believe its X-Forwarded-For
            proxy_headers=False,
        )
        server = uvicorn.Server(config)
        number = len(self._servers)
        self._servers.append(server)

        def run():
            self._server_threads.add(threading.get_ident())
            try:
                asyncio.run(server.serve(sockets=[bound]))
            except BaseException:  # noqa: BLE001 - also what ends uvicorn
                if server.started:  # else uvicorn has logged why
                    traceback.print_exc()
            finally:
                bound.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.002)
        if not server.started:
            return {"started": False}
        return {"started": True, "port": bound.getsockname()[1], "number": number}

    def _count_arrivals(self, app):
        async def counted(scope, receive, send):
            if scope["type"] in ("http", "websocket"):
                path = scope["path"]
                self._arrived[path] = self._arrived.get(path, 0) + 1
            await app(scope, receive, send)

        return counted

    def _op_stop_server(self, number):
        self._servers[number].should_exit = True

    def _op_probe(self, method, arguments):
        return getattr(self.probe, method)(*arguments)

    def _op_set(self, name):
        self.event(name).set()

    def _op_notes(self):
        return plain(self.notes)

    def _op_arrived(self, path):
        return self.arrived(path)

    def _op_connected(self, port):
        return any(
            connection.client is not None and connection.client[1] == port
            for server in self._servers
            for connection in list(server.server_state.connections)
        )

    def _op_turns(self, count):
        for loop in list(self._loops):
            if not loop.is_running():
                continue
            done = threading.Event()

            def turn(left, loop=loop, done=done):
                if left:
                    loop.call_soon(turn, left - 1)
                else:
                    done.set()

            loop.call_soon_threadsafe(turn, count)
            while loop.is_running() and not done.wait(0.01):
                pass  # an answer's own loop may stop in between

    # where things are

    def _remember_loops(self):
        # so that the await chain of a task can be shown, whoever started its loop
        make = asyncio.events.new_event_loop

        def new_event_loop():
            loop = make()
            self._loops.add(loop)
            return loop

        asyncio.new_event_loop = asyncio.events.new_event_loop = new_event_loop

    def describe(self, error):
        """Type, message, line in the answer and traceback of an error, as text."""
        try:
            message = str(error)
        except Exception:  # noqa: BLE001
            message = "(its text could not be had)"
        frames = traceback.extract_tb(error.__traceback__)
        in_answer = [frame for frame in frames if self._is_answer(frame.filename)]
        where = None
        if isinstance(error, SyntaxError) and error.filename and self._is_answer(error.filename):
            where = f"line {error.lineno}: {(error.text or '').strip()}"
            message = error.msg
        elif in_answer:
            where = _line(in_answer[-1].lineno, in_answer[-1].name, in_answer[-1].line)
        if type(error) is NameError:
            message += " (the file holds what the exercise's cell does, and nothing of other cells)"
        return {
            "type": type(error).__name__,
            "message": message[:2000],
            "where": where,
            "arguments": [arg for arg in map(plain, error.args) if isinstance(arg, str)][:3],
            "traceback": "".join(traceback.format_exception(error))[-8000:],
        }

    def _is_answer(self, filename):
        return filename == str(self.answer_file)

    def _op_where(self):
        """The answer's lines that block an event loop, wait in one, or run now, in this order."""
        loops = [loop for loop in list(self._loops) if not loop.is_closed()]
        threads_of_loops = [getattr(loop, "_thread_id", None) for loop in loops]
        blocking, waiting, running = [], [], []
        for loop in loops:
            for task in asyncio.all_tasks(loop):
                waiting.append(self._await_chain(task.get_coro()))
        # a task's chain ends where it waits for an async generator: those follow by themselves
        for thing in gc.get_objects():
            if type(thing) is types.AsyncGeneratorType and thing.ag_await is not None:
                waiting.append(self._await_chain(thing))
        own = threading.get_ident()
        for ident, frame in sys._current_frames().items():
            if ident == own:
                continue
            for at, line in traceback.walk_stack(frame):
                code = at.f_code
                if self._is_answer(code.co_filename):
                    source = linecache.getline(code.co_filename, line).strip()
                    found = blocking if ident in threads_of_loops else running
                    found.append(_line(line, code.co_name, source))
                    break
        return list(dict.fromkeys(filter(None, blocking + waiting + running)))[:5]

    def _await_chain(self, waiting):
        links = []
        mine = False
        while waiting is not None:
            frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "ag_frame", None)
            frame = frame or getattr(waiting, "gi_frame", None)
            if frame is not None:
                name = frame.f_code.co_name
                if self._is_answer(frame.f_code.co_filename):
                    source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                    links.append(_line(frame.f_lineno, name, source))
                    mine = True
                elif mine:
                    links.append(name)
            waiting = (
                getattr(waiting, "cr_await", None)
                or getattr(waiting, "ag_await", None)
                or getattr(waiting, "gi_yieldfrom", None)
            )
        return " -> ".join(links[:6]) if mine else None


def _without_layers(
    config, input_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, **_
):
    """A decoder's forward that computes nothing; the cache grows as it should."""
    import torch
    from transformers import DynamicCache
    from transformers.modeling_outputs import BaseModelOutputWithPast

    count, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
    if use_cache is None:
        use_cache = config.use_cache
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=config)
    if past_key_values is not None:
        heads = config.num_key_value_heads
        size = config.hidden_size // config.num_attention_heads
        nothing = torch.zeros(count, heads, length, size)
        for layer in range(config.num_hidden_layers):
            past_key_values.update(nothing, nothing, layer)
    return BaseModelOutputWithPast(
        last_hidden_state=torch.zeros(count, length, config.hidden_size),
        past_key_values=past_key_values if use_cache else None,
    )


def _is_stub(error):
    arguments = getattr(error, "args", ())
    return isinstance(error, NotImplementedError) and bool(
        re.fullmatch(r"\d+\.\d+", str(arguments[0]) if arguments else "")
    )


def _line(number, name, source):
    inside = "" if name == "<module>" else f", in {name}"
    return f"line {number}{inside}: {(source or '').strip()}"


def load_module(path):
    """The file as a module of its own name; siblings in its folder can be imported."""
    name = Path(path).stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if name in sys.modules:
        name = f"{name}_{abs(hash(str(path)))}"
        if name in sys.modules:
            return sys.modules[name]
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        sys.dont_write_bytecode = True
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _signature_problem(function, parameters):
    """None if `function` can be called as the contract says, else how it cannot."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    positional = [None] * sum(kind == "positional" for _, kind, _ in parameters)
    by_name = {name: None for name, kind, _ in parameters if kind == "keyword"}
    needed = [None] * sum(kind == "positional" and not default for _, kind, default in parameters)
    needed_by_name = {
        name: None for name, kind, default in parameters if kind == "keyword" and not default
    }
    for args, kwargs in ((needed, needed_by_name), (positional, by_name)):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            return f"{signature}: {error}"
    return None


def plain(value):
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if kind in (list, tuple):
        return [plain(each) for each in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: plain(each) for key, each in value.items()}
    return {"type": kind.__name__}
