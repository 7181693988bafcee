# a right answer: each process has a socket of its own on the same port (SO_REUSEPORT)
import multiprocessing
import signal
import socket

import uvicorn


def serve(app, port):
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind(("127.0.0.1", port))
    config = uvicorn.Config(app, factory=True, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[own])


def main(port, workers, app="course.lessons.stage2:build"):
    processes = [multiprocessing.Process(target=serve, args=(app, port)) for _ in range(workers)]
    for process in processes:
        process.start()

    def stop(*_):
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGINT, stop)
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(8000, 4)
