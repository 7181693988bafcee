"""Ray's Python processes as forks of a process that has imported Ray: the import is most of what each of them costs.

Ray starts its processes as usual, and `sitecustomize` calls `begin` in each. Those in `FORKED` hand over to a fork of
the process that runs `serve`. The fork continues in their place, and they only wait. If either ends, so does the other.

Not covered: macOS, where it is better not to fork a process that has loaded so much; a runtime_env with another Python.
"""

import json
import os
import signal
import socket
import sys
import types

FORKED = ("/ray/_private/workers/default_worker.py", "/ray/_private/runtime_env/agent/main.py")
forks = sys.platform == "linux" and os.environ.get("COURSE_START") != "spawn"
"""Whether this process may hand over to a fork."""


def begin():
    """Hand over if this process is one of FORKED."""
    if any(argument.endswith(FORKED) for argument in sys.orig_argv[1:4]):
        hand_over()


def hand_over():
    """Let a fork continue in place of this process, with its arguments, environment and standard files.

    Returns only if no process runs `serve`.
    """
    if not forks:
        return
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(_address())
        except OSError:
            return
        own = {"arguments": sys.orig_argv, "path": sys.path, "environment": dict(os.environ), "folder": os.getcwd()}
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        connection.sendall(json.dumps(own).encode() + b"\n")
        connection.recv(1)
    os._exit(0)


def import_ray():
    """Import Ray in such a way that forks of this process can serve as Ray's, each with its own random numbers."""
    # Ray reads these only when it is imported: no job yet, and the process that a worker must not outlive
    read_once = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
    os.environ.update(read_once)
    import ray.actor

    for name in read_once:
        del os.environ[name]
    # once Ray's generator has made a number, forks share its state, and so the ids of their tasks
    ids = ray.actor.ActorClassID
    ray.actor.ActorClassID = types.SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size())))
    import ray.serve._private.controller
    import ray.serve._private.proxy
    import ray.serve._private.replica  # noqa: F401

    ray.actor.ActorClassID = ids


def serve():
    """Make the forks for as long as this process's parent lives. Does not return."""
    parent = os.getppid()
    # no one asks how a fork has ended
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(_address())
        listener.listen(64)
        listener.settimeout(1.0)
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _go_on(connection)
            connection.close()
    os._exit(0)


def _go_on(connection):
    global forks
    forks = False
    import runpy
    import threading
    import traceback

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    _, files, *_ = socket.recv_fds(connection, 1, 3)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    own = json.loads(connection.makefile("rb").readline())

    def end_with_it():
        connection.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_it, daemon=True).start()
    os.environ.clear()
    os.environ.update(own["environment"])
    # Ray has read the configuration of the process that imported it
    sys.modules["ray._raylet"].Config.initialize("")
    os.chdir(own["folder"])
    sys.orig_argv = arguments = own["arguments"]
    # options for Python itself begin with a dash
    first = next(n for n, argument in enumerate(arguments) if n and (argument == "-c" or argument[0] != "-"))
    sys.argv = arguments[first:]
    try:
        if sys.argv[0] == "-c":
            sys.path[:] = ["", *own["path"]]
            exec(sys.argv.pop(1), sys.modules["__main__"].__dict__)
        else:
            sys.path[:] = [os.path.dirname(sys.argv[0]), *own["path"]]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _address():
    return os.path.join(os.environ["COURSE_RAY_FOLDER"], "forks")
