"""A Ray that is confined to this computer, to run exercise 4.4's application on.

    with LocalRay(work_folder()) as local:
        local.run("course.lessons.stage4c:load", replicas=2)
        httpx.post(local.url + "/v1/chat/completions", json=...)

Its processes form one session. The first process holds the answer and starts the others, most of them as forks
(`ray_forks`). Closing its standard input tells it to end; the system also does that when this process ends in any way.
It then ends the session and removes its folder. Nothing in it listens on any address but this computer's own, and it
does not look for any other Ray.

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
"""Ray only counts with this number. If it were lower, copies that ask for more would wait forever."""
FIRST_PROCESS = "import sys; from course.lessons import local_ray; local_ray.main(*sys.argv[1:])"
EACH_PROCESS = """\
from course.lessons import ray_forks

ray_forks.begin()
from course.lessons.local_ray import in_each_process

in_each_process()
"""
LONGEST_FOLDER = 36
"""In bytes. On macOS, the whole path of a socket has at most 103, of which 67 follow the folder."""


class RayDidNotStart(Exception):
    """Ray itself did not start. The message is the last line of its output."""


class LocalRayError(Exception):
    """The application did not start. The message is the last line of the error, `.traceback` the whole error."""

    traceback = ""


class LocalRay:
    """Ray's processes. Use it as a context manager: at the end of the block, all of them end."""

    def __init__(self, work=None, paths=(), joins=None):
        """Args:
        work: a folder of answers like `work/`, with 4.4's answer in `stage4/deployment.py`. None means a copy of
            the reference answers in this object's own folder.
        paths: folders with more modules that the copies can import.
        joins: the folder of another LocalRay whose Ray is used instead; `work` and `paths` are then that one's.
        """
        self._joins = bool(joins)
        self.folder = Path(joins) if joins else _folder()
        settings = self.folder / "settings.json"
        if not joins:
            # Python runs this file first in every process; with Ray's own hook, each worker would start twice
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
        """Run `serve.run(build(load, **arguments))` and wait until it has returned; `load` is "module:function".

        Returns:
            {"copies": how many are running, "cpus": the largest number of CPUs that any of them asks for}

        Raises:
            RayDidNotStart: Ray itself did not start.
            LocalRayError: the application did not start.
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
        """Ray Serve's last warning, for example that there are not enough CPUs for the copies."""
        logs = (self.folder / "session_latest" / "logs" / "serve").resolve()
        lines = "".join(map(_text, logs.glob("controller_*.log"))).splitlines()
        return next((line.split(" -- ")[-1] for line in reversed(lines) if line.startswith("WARNING")), "")

    def output(self):
        """What the first process, which holds the answer, has printed and logged."""
        # the file is gone if that process has ended by itself
        return _text(self._log)

    def copies_logs(self):
        """What the copies have printed and logged, oldest first."""
        logs = (self.folder / "session_latest" / "logs").resolve()
        files = [*logs.glob("worker-*.err"), *logs.glob("serve/replica_*")]
        files.sort(key=lambda file: file.stat().st_mtime)
        return "".join(map(_text, files))

    def close(self):
        """End all processes. An object that has joined another one's Ray only removes its own application."""
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
    # RAY_ADDRESS would lead to someone's cluster
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    paths = [str(folder), str(ROOT), *settings["paths"], *filter(None, [os.environ.get("PYTHONPATH")])]
    return inherited | {
        "COURSE_RAY_FOLDER": str(folder),
        "COURSE_WORK": settings["work"],
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        # otherwise Ray writes a token to the home folder
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": settings["token"],
        # otherwise it listens on all addresses
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # otherwise its processes run at a low priority and get no CPU time on a busy computer
        "RAY_worker_niceness": "0",
        # give its processes time to wait for each other on a slow computer
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_gcs_server_port_wait_time_s": "300",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    }


def _end_session(sid):
    """End all processes of that session except this one. Ray puts some of them into their own process groups."""
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
    """Start a Ray, or join one. Then each line of JSON on standard input says what to run on it, and a line on standard
    output says what became of it."""
    if task == "join":
        ray_forks.hand_over()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that what an answer prints is not taken for a reply
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
    # only a process that has joined gets here
    serve.delete("default")


def _read(wanted, folder, task):
    # without a buffer, because a fork might find its lock taken
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
    """Make Ray wait longer, since on a slow computer it would give up after 15 or 30 seconds, and leave out four
    processes that only cost time here: one starts more machines, one repeats the copies' logs, and two belong to the
    dashboard."""
    from ray import _raylet
    from ray._private import node, parameter, services

    # if Ray is given these ports, it does not wait to be told them
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
        # without some process in its place, the raylet would end
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
    """How many CPUs a copy of a deployment asks for, either for its actor or for its placement group."""
    bundles = config.get("placement_group_bundles") or []
    return max(config["ray_actor_options"].get("num_cpus", 1), sum(each.get("CPU", 0) for each in bundles))


def load_tiny():
    """The `load` of the lesson's copies: 3.6's chat model, with the model that COURSE_MODEL names or the tiny one."""
    from course.qwen.models import model_path

    load_chat_model = answers.load("1.1", "load_chat_model", solution=True)
    return answers.load("3.6", "ChatModel", solution=True)(*load_chat_model(model_path()))


def in_each_process():
    """What each of Ray's processes does first: make the answers importable, and listen on 127.0.0.1 only."""
    from grpc.aio._server import Server

    answers.importable()
    listen = Server.add_insecure_port
    # on all addresses, a copy would accept pickles from anyone; Ray uses that for copies on other machines
    Server.add_insecure_port = lambda self, address: listen(self, address.replace("[::]", "127.0.0.1"))
