# caught by: test_sigint_to_the_parent_ends_all | says: its workers run on
import subprocess
import sys


def main(port, workers, app="course.lessons.stage2:build"):
    command = [sys.executable, "-m", "uvicorn", app, "--factory", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", str(workers)]
    try:
        # on KeyboardInterrupt, run() waits a quarter of a second and then kills its child
        subprocess.run(command)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main(8000, 4)
