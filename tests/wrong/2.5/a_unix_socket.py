# caught by: test_main_serves_on_the_port_that_it_is_given | says: nothing listens on 127.0.0.1
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, uds=f"{port}.sock", workers=workers)


if __name__ == "__main__":
    main(8000, 4)
