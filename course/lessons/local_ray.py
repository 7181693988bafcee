"""A Ray on this computer alone, with exercise 4.4's application on it.

    with LocalRay(work_folder()) as local:
        local.run("course.lessons.stage4c:load", replicas=2)
        httpx.post(local.url + "/v1/chat/completions", json=...)

It is a session of processes. The first holds the answer and starts the others, most of them its forks (`ray_forks`);
it is told to end by closing its standard input, which the system also does when this process ends in any way. It then
ends the session and removes its folder. Nothing of it listens on another address than this computer's own, and no
other Ray is looked for.

Not covered: Windows; two answers at once.
"""

import contextlib
import functools
import importlib
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import psutil

from course import answers
from course.lessons import ray_forks
from course.manifest import ROOT

START_LIMIT_S = 300.0
END_LIMIT_S = 60.0
CPUS = 100
"""Only a number. With fewer, copies that ask for more would wait for ever."""
FIRST_PROCESS = "import sys; from course.lessons import local_ray; local_ray.main(*sys.argv[1:])"
EACH_PROCESS = """\
from course.lessons import ray_forks

ray_forks.begin()
from course.lessons.local_ray import in_each_process

in_each_process()
"""
LONGEST_FOLDER = 36
"""Bytes. A socket's whole path has at most 103 on macOS; 67 follow the folder."""


class RayDidNotStart(Exception):
    """Ray itself did not; the message is its last line."""


class LocalRayError(Exception):
    """The application did not start. The message is the error's last line; `.traceback` is all of it."""

    traceback = ""


class LocalRay:
    """Ray's processes. Use it as a context manager; leaving it ends them all."""

    def __init__(self, work=None, paths=(), joins=None):
        """Args:
        work: a folder of answers, as `work/` is: 4.4's is `stage4/deployment.py` in it. At None, a copy of the
            reference answers in its own folder.
        paths: folders of more modules that the copies can import.
        joins: the folder of another LocalRay, whose Ray is used; `work` and `paths` are then what they were there.
        """
        self._joins = bool(joins)
        self.folder = Path(joins) if joins else _folder()
        settings = self.folder / "settings.json"
        if not joins:
            # Python runs it first of all in every process; Ray's own hook starts each worker twice
            (self.folder / "sitecustomize.py").write_text(EACH_PROCESS, encoding="utf-8")
            if work is None:
                work = shutil.copytree(ROOT / "solutions", self.folder / "work")
            found = {"port": _free_port(), "token": secrets.token_hex(16), "work": str(work)}
            settings.write_text(json.dumps(found | {"paths": [str(path) for path in paths]}), encoding="utf-8")
        found = json.loads(settings.read_text(encoding="utf-8"))
        self.work = Path(found["work"])
        self.url = f"http://127.0.0.1:{found['port']}"
        self._log = self.folder / f"log-{secrets.token_hex(4)}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", FIRST_PROCESS, self.folder, "join" if joins else "start"],
                cwd=self.folder,
                env=_environment(found, self.folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._ready = False
        self._replies = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def run(self, load, *, limit_s=START_LIMIT_S, **arguments):
        """Waits until `serve.run(build(load, **arguments))` has returned; `load` is "module:function".

        Returns:
            {"copies": how many run, "cpus": the most CPUs that one of them asks for}

        Raises:
            RayDidNotStart: Ray did not.
            LocalRayError: the application did not.
            TimeoutError: `serve.run` did not return within the limit.
        """
        if not self._ready:
            reply = self._reply(START_LIMIT_S) or {"failed": f"it did not start within {START_LIMIT_S:.0f} s"}
            if "failed" in reply:
                raise RayDidNotStart(reply["failed"])
            self._ready = True
            self.pid = reply["pid"]
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"load": load, "arguments": arguments}).encode() + b"\n")
            self._process.stdin.flush()
        reply = self._reply(limit_s)
        if reply is None:
            raise TimeoutError(self._last_warning() or f"serve.run did not return within {limit_s:.0f} s")
        if "failed" in reply:
            error = LocalRayError(reply["failed"])
            error.traceback = reply["traceback"]
            raise error
        return reply

    def _reply(self, limit_s):
        with contextlib.suppress(queue.Empty):
            return self._replies.get(timeout=limit_s)
        return None

    def _last_warning(self):
        """The last thing that Ray Serve complained of: of copies that find no CPU, say."""
        logs = (self.folder / "session_latest" / "logs" / "serve").resolve()
        lines = "".join(map(_text, logs.glob("controller_*.log"))).splitlines()
        return next((line.split(" -- ")[-1] for line in reversed(lines) if line.startswith("WARNING")), "")

    def output(self):
        """What its first process, with the answer in it, has printed and logged."""
        # it is gone where the first process has ended by itself
        return _text(self._log)

    def copies_logs(self):
        """What the copies have printed and logged, the oldest first."""
        logs = (self.folder / "session_latest" / "logs").resolve()
        files = [*logs.glob("worker-*.err"), *logs.glob("serve/replica_*")]
        files.sort(key=lambda file: file.stat().st_mtime)
        return "".join(map(_text, files))

    def close(self):
        """Ends all of it. One that has joined only takes its application away."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_LIMIT_S)
        _end_session(self._process.pid)
        self._process.wait()
        self._listener.join()
        self._process.stdout.close()
        if not self._joins:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _listen(self):
        for line in self._process.stdout:
            self._replies.put(json.loads(line))
        lines = self.output().strip().splitlines() or ["it ended"]
        self._replies.put({"failed": lines[-1], "traceback": self.output()})


def _text(file):
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""


def _folder():
    base = Path(tempfile.gettempdir()).absolute()
    folder = tempfile.mkdtemp(prefix="qwen-ray-", dir=base)
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="qwen-ray-", dir="/tmp")
    return Path(folder)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _environment(settings, folder):
    # RAY_ADDRESS would lead to somebody's cluster
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = [str(folder), str(ROOT), *settings["paths"], *filter(None, [os.environ.get("PYTHONPATH")])]
    return inherited | {
        "COURSE_RAY_FOLDER": str(folder),
        "COURSE_WORK": settings["work"],
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # else Ray writes one into the home folder
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": settings["token"],
        # else it listens on all addresses
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # else its processes come after all others on a busy computer
        "RAY_worker_niceness": "0",
        # how long its processes wait for each other on a slow computer
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_gcs_server_port_wait_time_s": "300",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }


def _end_session(sid):
    """Ends the processes of that session, but for this one: Ray puts some into groups of their own."""
    for _ in range(200):
        left = [pid for pid in psutil.pids() if pid != os.getpid() and _session(pid) == sid]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.02)


def _session(pid):
    with contextlib.suppress(OSError, psutil.Error):
        return None if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else os.getsid(pid)
    return None


# in the first process


def main(folder, task):
    """Starts a Ray, or joins one; then a line of JSON on standard input says what to run on it, and one on standard
    output what came of it."""
    if task == "join":
        ray_forks.hand_over()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an answer prints is no reply
    wanted = queue.Queue()
    threading.Thread(target=_read, args=(wanted, folder, task), daemon=True).start()
    if ray_forks.forks and task == "start":
        ray_forks.import_ray()
        if os.fork() == 0:
            replies.close()
            ray_forks.serve()
    import ray
    from ray import serve

    _connect(ray, serve, Path(folder), task)
    replies.write(json.dumps({"ready": True, "pid": os.getpid()}) + "\n")
    answers.importable()
    while (request := wanted.get()) is not None:
        try:
            reply = _run(serve, **request)
        except BaseException as error:  # noqa: BLE001 - the answer may raise anything
            said = traceback.format_exception_only(error)[-1].strip()
            reply = {"failed": said, "traceback": "".join(traceback.format_exception(error))}
        replies.write(json.dumps(reply) + "\n")
    # only one that has joined comes here
    serve.delete("default")


def _read(wanted, folder, task):
    # no buffer, whose lock a fork would find taken
    for line in open(0, "rb", buffering=0, closefd=False):
        wanted.put(json.loads(line))
    if task == "join":
        wanted.put(None)
        return
    _end_session(os.getsid(0))
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _connect(ray, serve, folder, task):
    address = folder / "address"
    both = {"log_to_driver": False, "logging_level": "ERROR"}
    if task == "join":
        while not address.is_file():
            time.sleep(0.1)
        ray.init(address=address.read_text(), _temp_dir=str(folder), **both)
        return
    _make_patient()
    found = ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        object_store_memory=80_000_000,
        _node_ip_address="127.0.0.1",
        _metrics_export_port=_free_port(),
        _temp_dir=str(folder),
        **both,
    )
    port = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["port"]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    half = address.with_suffix(".half")
    half.write_text(found.address_info["address"], encoding="utf-8")
    half.replace(address)


def _make_patient():
    """Makes Ray wait on a slow computer, where it would give up after 15 or 30 seconds, and leaves out four processes
    that only cost time here: one starts more machines, one repeats the copies' logs, two are the dashboard's."""
    from ray import _raylet
    from ray._private import node, parameter, services

    # a port that it is given, it does not wait to be told
    parameter.RayParams = functools.partial(
        parameter.RayParams,
        no_monitor=True,
        include_log_monitor=False,
        metrics_agent_port=_free_port(),
        runtime_env_agent_port=_free_port(),
        dashboard_agent_listen_port=_free_port(),
    )
    start_raylet, get_node = node.Node.start_raylet, services.get_node

    def start_raylet_and_tell_it(self, *args, **kwargs):
        port = self._ray_params.dashboard_agent_listen_port
        _raylet.persist_port(self._session_dir, self._node_id, _raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        return start_raylet(self, *args, **kwargs)

    def get_node_when_it_is_there(*args, **kwargs):
        until = time.monotonic() + START_LIMIT_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                ended = [each for each in psutil.Process().children() if each.status() == psutil.STATUS_ZOMBIE]
                if ended or time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def start_without_dashboard(command, *args, **kwargs):
        # the raylet ends without a process there
        agent = "--dashboard_agent_command="
        command = [f"{agent}sleep 999999999" if each.startswith(agent) else each for each in command]
        return start_process(command, *args, **kwargs)

    start_process, services.start_ray_process = services.start_ray_process, start_without_dashboard
    node.Node.start_api_server = lambda self, **_: None
    node.Node.start_raylet, services.get_node = start_raylet_and_tell_it, get_node_when_it_is_there


def _run(serve, load, arguments):
    module, _, name = load.partition(":")
    build = answers.load("4.4", "build")
    application = build(getattr(importlib.import_module(module), name), **arguments)
    if not isinstance(application, serve.Application):
        raise TypeError(f"build must return a serve.Application, not {type(application).__name__}")
    serve.run(application, name="default")
    from ray.serve.context import _get_global_client

    deployments = _get_global_client().get_serve_details()["applications"]["default"]["deployments"]
    return {
        "copies": sum(len(each["replicas"]) for each in deployments.values()),
        "cpus": max(_cpus(each["deployment_config"]) for each in deployments.values()),
    }


def _cpus(config):
    """How many a copy of a deployment asks for: for its actor, or for the group that it is placed with."""
    bundles = config.get("placement_group_bundles") or []
    return max(config["ray_actor_options"].get("num_cpus", 1), sum(each.get("CPU", 0) for each in bundles))


def load_tiny():
    """What a copy of the lesson's loads: 3.6's chat model around the model that COURSE_MODEL names, or the tiny one."""
    from course.qwen.models import model_path

    load_chat_model = answers.load("1.1", "load_chat_model", solution=True)
    return answers.load("3.6", "ChatModel", solution=True)(*load_chat_model(model_path()))


def in_each_process():
    """What each of Ray's processes does first: it finds the answers, and listens on this computer's address alone."""
    from grpc.aio._server import Server

    answers.importable()
    listen = Server.add_insecure_port
    # on all addresses a copy would take pickles from anyone: Ray's own copies on other machines send them
    Server.add_insecure_port = lambda self, address: listen(self, address.replace("[::]", "127.0.0.1"))
