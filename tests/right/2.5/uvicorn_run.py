# a right answer: one call of uvicorn.run, nothing else
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(8000, 4)
