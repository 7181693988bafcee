# caught by: test_each_process_builds_its_own_app | says: the app that answers was built in another process
import multiprocessing
import socket

import uvicorn
from uvicorn.importer import import_from_string


def main(port, workers, app="course.lessons.stage2:build"):
    application = import_from_string(app)()
    shared = socket.create_server(("127.0.0.1", port), backlog=128)
    server = uvicorn.Server(uvicorn.Config(application, timeout_graceful_shutdown=1))
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=server.run, args=([shared],)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()


if __name__ == "__main__":
    main(8000, 4)
