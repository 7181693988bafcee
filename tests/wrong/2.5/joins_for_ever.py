# caught by: test_sigint_to_the_parent_ends_all | says: the parent runs on after SIGINT
import multiprocessing
import socket

import uvicorn


def serve(app, shared):
    uvicorn.Server(uvicorn.Config(app, factory=True)).run([shared])


def main(port, workers, app="course.lessons.stage2:build"):
    shared = socket.create_server(("127.0.0.1", port), backlog=128)
    processes = [multiprocessing.Process(target=serve, args=(app, shared)) for _ in range(workers)]
    for process in processes:
        process.start()
    # after the KeyboardInterrupt, Python waits for the processes that are no daemons
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(8000, 4)
