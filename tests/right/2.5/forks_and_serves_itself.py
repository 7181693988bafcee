# a right answer: pre-fork, with the parent as one of the workers
import asyncio
import os
import signal
import socket

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(256)
    children = []
    for _ in range(workers - 1):
        pid = os.fork()
        if pid == 0:
            children = None
            break
        children.append(pid)

    async def serve():
        config = uvicorn.Config(app, factory=True, loop="asyncio", timeout_graceful_shutdown=1)
        await uvicorn.Server(config).serve(sockets=[listener])

    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        pass
    if children is None:
        os._exit(0)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(8000, 4)
