# a right answer: uvicorn's parts put together by hand
from uvicorn import Config
from uvicorn.supervisors import Multiprocess


def main(port, workers, app="course.lessons.stage2:build"):
    options = {"host": "127.0.0.1", "port": port, "workers": workers}
    config = Config(app, factory=True, timeout_graceful_shutdown=1, **options)
    Multiprocess(config, sockets=[config.bind_socket()]).run()


if __name__ == "__main__":
    main(8000, 4)
