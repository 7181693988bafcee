# caught by: test_each_process_builds_its_own_app | says: a process that serves no requests also builds the app and loads a model
import uvicorn

from course.lessons.stage2 import build

# every worker imports this file again
application = build()


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, port=port, workers=workers, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main(8000, 4)
