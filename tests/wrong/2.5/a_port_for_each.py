# caught by: test_as_many_processes_as_workers_answer | says: each process listens on its own port
import multiprocessing

import uvicorn


def serve(app, port):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, timeout_graceful_shutdown=1)


def main(port, workers, app="course.lessons.stage2:build"):
    processes = [
        multiprocessing.Process(target=serve, args=(app, port + number), daemon=True)
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main(8000, 4)
