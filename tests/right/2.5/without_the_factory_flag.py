# a right answer: uvicorn sees by itself that the app is a factory, and only warns
import uvicorn


def main(port: int, workers: int, app: str = "course.lessons.stage2:build") -> None:
    options = {"log_level": "warning", "timeout_graceful_shutdown": 1}
    uvicorn.run(app, host="127.0.0.1", port=port, workers=workers, **options)


if __name__ == "__main__":
    main(port=8000, workers=4)
