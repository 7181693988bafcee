# caught by: test_as_many_processes_as_workers_answer | says: more processes answer than workers=2
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=4)


if __name__ == "__main__":
    main(8000, 4)
