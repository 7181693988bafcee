# a right answer: the uvicorn command as a child, to which SIGINT is passed on
import signal
import subprocess
import sys


def main(port, workers, app="course.lessons.stage2:build"):
    command = [sys.executable, "-m", "uvicorn", "--factory", app]
    command += ["--host=127.0.0.1", f"--port={port}", f"--workers={workers}"]
    command += ["--timeout-graceful-shutdown=1"]
    uvicorn = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda *_: uvicorn.send_signal(signal.SIGINT))
    signal.signal(signal.SIGTERM, lambda *_: uvicorn.terminate())
    sys.exit(uvicorn.wait())


if __name__ == "__main__":
    main(8000, 4)
