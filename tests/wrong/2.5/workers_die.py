# caught by: test_main_serves_on_the_port_that_it_is_given | says: no worker is alive
import multiprocessing
import socket
import time

import uvicorn


def serve(app, listening):
    # a list of sockets is asked for
    uvicorn.Server(uvicorn.Config(app, factory=True)).run(sockets=listening)


def main(port, workers, app="course.lessons.stage2:build"):
    listening = socket.create_server(("127.0.0.1", port))
    fork = multiprocessing.get_context("fork")
    for _ in range(workers):
        fork.Process(target=serve, args=(app, listening)).start()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(8000, 4)
