"""Exercise 2.5: the same server in several processes."""

import os

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    """Serve an app on 127.0.0.1 with several processes, until SIGINT (Ctrl-C).

    Exactly `workers` processes answer (whether still after hundreds of requests is not tested). Each
    has an event loop of its own and a model of its own: it builds its app itself, once, and no other
    process builds one. Once all of them answer, SIGINT
    to the process that called `main` ends them all within five seconds, even while an answer is
    being streamed.

    Not tested: with OMP_NUM_THREADS=1 in `os.environ`, which the workers inherit, torch computes with
    one thread in each of them. Otherwise it takes one for each core, and the workers fight for them.

    Run as a script without arguments, this file serves on port 8000 with 4 workers.

    Args:
        port: where to listen, on 127.0.0.1 and nowhere else.
        workers: how many processes answer.
        app: an import string "package.module:function". The function takes no arguments and
            returns the app.

    Example:
        >>> main(8000, 2)
        INFO:     Uvicorn running on http://127.0.0.1:8000 (Press CTRL+C to quit)
    """
    # read when torch is imported, which the workers do: they inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    uvicorn.run(
        app,
        factory=True,
        host="127.0.0.1",
        port=port,
        workers=workers,
        # the seconds that running answers get; without it, one that streams on keeps everything running
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main(8000, 4)
