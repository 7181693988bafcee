"""The process of a lesson server. It ends when its standard input is closed, and so together with its parent.

python -m course.lessons STAGE (--fd N | --host HOST --port PORT) [--grace S] [--solution] [--model NAME]
"""

import argparse
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import time

from course.lessons.server import LESSONS, LET_GO_S


def main():
    parser = argparse.ArgumentParser(prog="python -m course.lessons")
    parser.add_argument("stage", type=int, choices=LESSONS)
    parser.add_argument("--fd", type=int, help="a socket that is already bound")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grace", type=float, help="how many seconds answers may go on after SIGTERM")
    parser.add_argument("--solution", action="store_true")
    parser.add_argument("--model")
    arguments = parser.parse_args()

    # while uvicorn serves, it catches the signal, ends its clients' requests, and then passes the signal on to this
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    servers = []
    threading.Thread(target=_end_with_input, args=[servers], daemon=True).start()

    import uvicorn

    from course.answers import NotReady
    from course.qwen.models import ModelUnavailable

    lesson = importlib.import_module(LESSONS[arguments.stage])
    try:
        app = lesson.build(solution=arguments.solution, model=arguments.model)
    except (NotReady, ModelUnavailable) as problem:
        print(problem, file=sys.stderr)
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=arguments.host,
            port=arguments.port,
            timeout_graceful_shutdown=arguments.grace,
            # otherwise uvicorn believes any X-Forwarded-For from 127.0.0.1, and each new one gets its own limit
            proxy_headers=False,
        )
    )
    # the pages ask how far the model is twice a second: these lines would bury all others
    logging.getLogger("uvicorn.access").addFilter(lambda record: record.args[2] not in ("/model", "/metrics"))
    servers.append(server)
    sockets = None if arguments.fd is None else [socket.socket(fileno=arguments.fd)]
    server.run(sockets=sockets)
    return 0 if server.started else 1


def _end_with_input(servers):
    while os.read(0, 1):
        pass
    for server in servers:
        server.config.timeout_graceful_shutdown = LET_GO_S
        server.should_exit = True
        time.sleep(LET_GO_S + 1)
    os._exit(0)


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        code = 0
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    # immediately: a normal exit would wait for every answer that is still in progress
    os._exit(code)
