# caught by: test_as_many_processes_as_workers_answer | says: threads are not workers
import asyncio
import socket
import threading

import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    shared = socket.create_server(("127.0.0.1", port), backlog=128)

    def work():
        server = uvicorn.Server(uvicorn.Config(app, factory=True))
        asyncio.run(server.serve(sockets=[shared.dup()]))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(8000, 4)
