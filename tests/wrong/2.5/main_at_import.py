# caught by: test_main_serves_on_the_port_that_it_is_given | says: only under `if __name__ ==
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers, timeout_graceful_shutdown=1)


main(8000, 4)
