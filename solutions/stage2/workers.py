"""Exercise 2.5: the same server in several processes."""

import os

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    """Serve an app on 127.0.0.1 with several processes, until SIGINT (Ctrl-C).

    Exactly `workers` processes answer (whether they still do after hundreds of requests is not tested).
    Each has its own event loop and its own model: it builds its app itself, once, and no other process
    builds one. Once all of them answer, a SIGINT to the process that called `main` ends them all within
    five seconds, even while an answer is streaming.

    Not tested: setting OMP_NUM_THREADS=1 in `os.environ`, which the workers inherit, makes torch use a
    single thread in each worker. Otherwise it starts one per core, and the workers compete for the
    cores.

    Run as a script without arguments, this file serves on port 8000 with 4 workers.

    Args:
        port: the port to listen on; the address is always 127.0.0.1.
        workers: the number of processes that answer.
        app: an import string "package.module:function". The function takes no arguments and
            returns the app.

    Example:
        >>> main(8000, 2)
        INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)
    """
    # torch reads this when a worker imports it: workers inherit the environment
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    uvicorn.run(
        app,
        factory=True,
        host="127.0.0.1",
        port=port,
        workers=workers,
        # how many seconds running answers get; without it, an endless one would keep the server running
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main(8000, 4)
