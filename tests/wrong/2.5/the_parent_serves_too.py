# caught by: test_as_many_processes_as_workers_answer | says: more processes answer than workers=2
import os
import signal
import socket

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    shared = socket.create_server(("127.0.0.1", port), backlog=128)
    children = []
    for _ in range(workers):
        child = os.fork()
        if child == 0:
            break
        children.append(child)
    try:
        uvicorn.Server(uvicorn.Config(app, factory=True, timeout_graceful_shutdown=1)).run([shared])
    except KeyboardInterrupt:
        pass
    for child in children:
        os.kill(child, signal.SIGTERM)


if __name__ == "__main__":
    main(8000, 4)
