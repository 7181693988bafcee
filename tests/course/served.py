"""A lesson's server in a thread of this process, with a probe on its model, a client on a bare socket, and what
each of the course's servers has to pass.
"""

import asyncio
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import httpx
import torch
import uvicorn
from commands import course_here

from course import grading, records
from course.audit import PASSED, audit
from course.audit.server import Server as Audited
from course.grading.probe import Probe
from course.manifest import find

LIMIT_S = 60
"""Only ends a hang."""

LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}] \[pid:(?P<pid>\d+)] \[level:(?P<level>[A-Z]+)] \[logid:(?P<logid>\S+)]"
    r" \[CPU: [\d.]+] \[Memory: [\d.]+] \[GPU: [\d.]+] (?P<message>.*)"
)
"""A line of 3.4's log."""


def wait_for(holds, limit_s=LIMIT_S):
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.002)


def steps(server):
    return httpx.get(server.url + "/model").json()["steps"]


def settled(server):
    """The count of forward passes when it no longer changes; a limit only ends a hang."""
    before, until = -1, time.monotonic() + 30
    while time.monotonic() < until:
        now = steps(server)
        if now == before:
            return now
        before = now
        time.sleep(0.1)
    raise AssertionError("the model goes on and on")


def examine(server):
    """It passes each check of `course audit`."""
    results = asyncio.run(audit(Audited(server.url + "/v1")))
    assert [(each.id, each.sent, each.got) for each in results if each.status != PASSED] == []


def check_from_outside(server, id):
    """It passes all that `course check ID --url` can run, and nothing of that is kept."""
    done = course_here("check", id, "--url", f"{server.url}/v1", "--json")
    assert done.returncode == 0, done
    found = json.loads(done.stdout)
    assert (found["url"], found["counted"], found["passed"]) == (server.url, False, False)
    assert (found["score"], found["max_score"]) == (0, 0) and "file" not in found
    statuses = {test["id"]: test["status"] for test in found["tests"]}
    assert statuses == {test.id: "passed" if test.elsewhere else "not_run" for test in find(id).tests}, done.stdout
    for test, told in zip(find(id).tests, found["tests"], strict=True):
        expected = {"": grading.NOT_ELSEWHERE, "all": ""}.get(test.elsewhere, f"checked: {test.elsewhere}")
        assert told["message"] == expected
    assert records.last_checked() is None
    assert all(row["state"] == "not started" for row in records.standing())


class Here:
    """The server of the reference answers in a thread of this process, with a probe on its model.

    Its event loop's default pool has 6 threads, as many as asyncio gives a computer with 2 cores.

    Args:
        lesson: the module whose `build` makes the app.
    """

    def __init__(self, lesson, **config):
        torch.set_num_threads(1)
        model, tokenizer = lesson.load_model(None)
        self.probe = Probe(model, tokenizer)
        with mock.patch.object(lesson, "load_model", lambda name: (model, tokenizer)):
            app = lesson.build(solution=True)
        # without uvicorn's own log_config all that is logged reaches caplog
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **config))
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.server.started)
        self.own_tasks = len(asyncio.all_tasks(self.loop))
        self.address = self.server.servers[0].sockets[0].getsockname()
        self.url = "http://{}:{}".format(*self.address)

    def _run(self):
        # with the event loop that uvicorn prefers, as in a process of its own
        with asyncio.Runner(loop_factory=self.server.config.get_loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self):
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(6))
        await self.server.serve()

    def stop(self):
        # whoever is still being answered, after a test that failed
        self.probe.end()
        self.server.should_exit = True
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()

    def left(self):
        """(tasks, connections) that are there for clients."""
        tasks = len(asyncio.all_tasks(self.loop)) - self.own_tasks
        return tasks, len(self.server.server_state.connections)

    def steps(self, prompt):
        """How many steps the model has made for each answer to such a prompt."""
        conversations = self.probe.report()["conversations"]
        return [each["steps"] for each in conversations if prompt in each["prompt"]]

    def say(self, prompt, text, times=1):
        ids = self.probe.tokenizer(text)["input_ids"] * times
        self.probe.say_ids([*ids, self.probe.eos_id], prompt)


class Raw:
    """A client on a bare socket, which can leave without a word, or never read.

    Args:
        path: where a POST with `body` as JSON goes; "/ws" opens a WebSocket and sends it as a frame.
    """

    def __init__(self, address, path, *, receive_buffer=None, **body):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(tuple(address))
        self.come = b""
        data = json.dumps(body).encode()
        if path == "/ws":
            self.socket.sendall(
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
            )
            self.read_to(b"\r\n\r\n")
            # a short text frame, with a mask of zeros
            data = bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data
        else:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            )
            data = head.encode() + data
        self.socket.sendall(data)

    def read_to(self, end):
        while end not in self.come:
            chunk = self.socket.recv(65_536)
            assert chunk, self.come
            self.come += chunk

    def close(self):
        self.socket.close()
