"""What runs inside the room: the process that holds the answer.

The main thread runs one scene after the other; a second thread answers questions while a scene is
running (what the probe has seen, which requests have arrived, in which line the answer hangs).
Results leave as JSON made of exact built-in types, so that nothing of the answer's can pretend.
"""

import asyncio
import copy
import functools
import importlib
import inspect
import json
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from course import answers
from course.grading import where
from course.grading.needs import signature_problem
from course.grading.probe import Probe, one_column, without_layers
from course.grading.settle import settle


def main(connection, answer_file, tests_file, folder):
    """The room's whole life: answers requests from `connection` until it closes."""
    streams = settle(connection, folder)
    sys.argv = [answer_file]  # an answer may parse its arguments
    inside = Inside(Path(answer_file), Path(tests_file), connection, streams)
    threading.Thread(target=inside.listen, daemon=True).start()
    inside.work()


class Inside:
    """The room as a scene sees it. A scene is a function `scene(answer, inside, **arguments)` of the
    tests file or of the kit, plain or async; `answer` is the answer's module."""

    def __init__(self, answer_file, tests_file, connection, streams):
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
        self._arrived = {}
        self._servers = []
        self._logs = None
        """How uvicorn's loggers were after the last server was made."""
        self._server_threads = set()
        self._streams = streams
        where.remember_loops()

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
        model.model.forward = functools.partial(without_layers, model.config)
        model.lm_head.forward = one_column(model.lm_head)
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

        return answers.module(ROOT / "solutions" / file)

    @staticmethod
    def plain(value):
        """The value if it is JSON of exact built-in types, else {"type": its type's name}."""
        return plain(value)

    def outcome(self, call, *args, **kwargs):
        """{"value": ...} or {"raised": names of the error's types, "message", "said", "where"}, the
        last three as in `describe`."""
        try:
            return {"value": plain(call(*args, **kwargs))}
        except Exception as error:  # noqa: BLE001 - the answer may raise anything
            if answers.raised_by_stub(error):
                raise
            kinds = [kind.__name__ for kind in type(error).__mro__]
            described = self.describe(error)
            return {"raised": kinds, **{key: described[key] for key in ("message", "said", "where")}}

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
        message = json.dumps({"id": request["id"], **reply}).encode()
        with self._sending:
            self._connection.send_bytes(message)

    def _op_load(self, needs):
        # what the answer imports of other exercises is the reference's: each is graded alone
        answers.importable(solution=True)
        self.answer = answers.module(self.answer_file, "answer")
        for name, parameters in needs.items():
            found = getattr(self.answer, name, None)
            if found is None:
                return {"missing": name}
            if parameters is None:
                if not isinstance(found, type):
                    return {"not_a_class": name}
            elif not callable(found):
                return {"missing": name}
            elif problem := signature_problem(found, parameters):
                return {"signature": name, "problem": problem}
        return {}

    def _scene(self, module, scene):
        in_course = module.partition(".")[0] == "course"
        found = importlib.import_module(module) if in_course else answers.module(self.tests_file)
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
        changed = self._logs != _state_of_logs()
        config = uvicorn.Config(
            self._count_arrivals(app),
            loop="asyncio",
            lifespan="on",
            # once, unless the answer has changed it: it takes longer than the rest of a start
            log_config=self._uvicorn_logs() if changed else None,
            log_level="info" if changed else None,
            use_colors=False,
            access_log=False,
            # uvicorn would take a client on this machine for a proxy, and believe its X-Forwarded-For
            proxy_headers=False,
        )
        self._logs = _state_of_logs()
        server = uvicorn.Server(config)
        number = len(self._servers)
        self._servers.append(server)

        def run():
            self._server_threads.add(threading.get_ident())
            try:
                asyncio.run(server.serve(sockets=[bound]))
            except BaseException:  # noqa: BLE001 - also what ends uvicorn
                if server.started:  # else uvicorn has logged why
                    traceback.print_exc(file=self._streams["stderr"])
            finally:
                bound.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.002)
        if not server.started:
            return {"started": False}
        return {"started": True, "port": bound.getsockname()[1], "number": number}

    def _uvicorn_logs(self):
        from uvicorn.config import LOGGING_CONFIG

        config = copy.deepcopy(LOGGING_CONFIG)
        config["handlers"]["default"]["stream"] = self._streams["stderr"]
        config["handlers"]["access"]["stream"] = self._streams["stdout"]
        return config

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
        for loop in list(where.loops):
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

    def _op_where(self):
        return where.lines_now(str(self.answer_file))

    def describe(self, error):
        """An error as data: its `type`, its text (`message`), both (`said`), the line in the answer
        (`where`), its first arguments and its traceback."""
        try:
            own = isinstance(error, SyntaxError) and error.filename == str(self.answer_file)
            message = error.msg if own else str(error)
        except Exception:  # noqa: BLE001
            message = "(its text is not available)"
        if type(error) is NameError:
            message += " (the file contains only the exercise's cell, nothing from other cells)"
        kind, message = type(error).__name__, message[:2000]
        return {
            "type": kind,
            "message": message,
            "said": f"{kind}: {message}" if message else f"{kind}, an error without a message",
            "where": where.line_of_error(error, str(self.answer_file)),
            "arguments": [arg for arg in map(plain, error.args) if isinstance(arg, str)][:3],
            "traceback": "".join(traceback.format_exception(error))[-8000:],
        }


def _state_of_logs():
    loggers = map(logging.getLogger, ("uvicorn", "uvicorn.error", "uvicorn.access"))
    return [(list(each.handlers), each.level, each.propagate, each.disabled) for each in loggers]


def plain(value):
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if kind in (list, tuple):
        return [plain(each) for each in value]
    if kind is dict:
        items = list(value.items())  # at once: the scene's own thread may be adding to its notes
        if all(type(key) is str for key, _ in items):
            return {key: plain(each) for key, each in items}
    return {"type": kind.__name__}
