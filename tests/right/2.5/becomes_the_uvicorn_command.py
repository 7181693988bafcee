# a right answer: the process becomes the uvicorn command
import os
import sys


def main(port, workers, app="course.lessons.stage2:build"):
    command = [sys.executable, "-m", "uvicorn", app, "--factory", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    command += ["--timeout-graceful-shutdown", "1"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main(8000, 4)
