# caught by: test_sigint_to_the_parent_ends_all | says: the parent has ended, but its workers keep running
import signal
import socket
import subprocess
import sys


def main(port, workers, app="course.lessons.stage2:build"):
    shared = socket.create_server(("127.0.0.1", port), backlog=128)
    serve = (
        "import socket, sys, uvicorn;"
        "config = uvicorn.Config(sys.argv[1], factory=True, timeout_graceful_shutdown=1);"
        "uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[2]))])"
    )
    command = [sys.executable, "-c", serve, app, str(shared.fileno())]
    for _ in range(workers):
        subprocess.Popen(command, pass_fds=[shared.fileno()])
    # Ctrl-C in a terminal reaches the children too; `kill -INT` reaches the parent alone
    signal.pause()


if __name__ == "__main__":
    main(8000, 4)
