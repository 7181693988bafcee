# caught by: test_main_serves_the_app_that_it_is_given | says: another app
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(
        "course.lessons.stage2:build", factory=True, host="127.0.0.1", port=port, workers=workers
    )


if __name__ == "__main__":
    main(8000, 4)
