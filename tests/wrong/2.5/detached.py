# caught by: test_main_serves_on_the_port_that_it_is_given | says: main ended instead of serving
import os
import socket
import sys

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    listening = socket.create_server(("127.0.0.1", port))
    for _ in range(workers):
        if os.fork() == 0:
            os.setsid()
            uvicorn.Server(uvicorn.Config(app, factory=True)).run(sockets=[listening])
            sys.exit()


if __name__ == "__main__":
    main(8000, 4)
