# caught by: test_the_script_serves_with_4_workers_on_port_8000 | says: run as a script, the file serves nothing
import uvicorn


def main(port, workers, app="course.lessons.stage2:build"):
    uvicorn.run(app, factory=True, host="127.0.0.1", port=port, workers=workers, timeout_graceful_shutdown=1)
