# caught by: test_the_script_serves_with_4_workers_on_port_8000 | says: Error loading ASGI app
import uvicorn


def main(port, workers, app="course.lessons.stage2:app"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers)


if __name__ == "__main__":
    main(8000, 4)
