# caught by: test_as_many_processes_as_workers_answer | says: only 1 process answers
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port)


if __name__ == "__main__":
    main(8000, 4)
