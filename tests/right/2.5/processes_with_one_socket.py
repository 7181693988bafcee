# a right answer: own processes, spawned, that share the listening socket
import multiprocessing
import socket

import uvicorn


def serve(app, listener):
    config = uvicorn.Config(app, factory=True, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def main(port, workers, app="course.lessons.stage2:build"):
    spawn = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        processes = [spawn.Process(target=serve, args=(app, listener)) for _ in range(workers)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        except KeyboardInterrupt:
            pass
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join()


if __name__ == "__main__":
    main(8000, 4)
