"""A small app with its own model, which shows what each worker of exercise 2.5 has to itself."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from unittest import mock

import psutil
import torch
from fastapi import FastAPI
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter
from transformers import AutoModelForCausalLM

from course.qwen.models import model_path

LIMIT = parse("50/hour")


def build() -> FastAPI:
    """GET /who -> {"pid", "resident_mb", "own_mb", "model_mb", "let_in": {"memory": true, ...}}

    `own_mb` is the process's own memory, without the pages that it shares with others, and `model_mb`
    is how much that grew when the model was loaded. Requests are counted in this process's memory,
    and also in COURSE_STORAGE if that is set; for each of the two, `let_in` says whether this request
    was among the first 50.
    """
    before = psutil.Process().memory_full_info().uss
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    after = psutil.Process().memory_full_info().uss
    places = {"memory": "memory://"}
    if "COURSE_STORAGE" in os.environ:
        places["redis"] = os.environ["COURSE_STORAGE"]
    limiters = {place: FixedWindowRateLimiter(storage_from_string(uri)) for place, uri in places.items()}
    app = FastAPI()
    app.state.model = model

    @app.get("/who")
    async def state():
        memory = psutil.Process().memory_full_info()
        return {
            **await who(),
            "resident_mb": memory.rss / 1e6,
            "own_mb": memory.uss / 1e6,
            "model_mb": (after - before) / 1e6,
            "let_in": {place: each.hit(LIMIT) for place, each in limiters.items()},
        }

    return app


async def who():
    time.sleep(0.02)  # blocks on purpose, so that another process takes the next request
    return {"pid": os.getpid()}


@contextlib.contextmanager
def redis_if_there():
    """If redis-server is installed, set COURSE_STORAGE to a new Redis for the duration of the block."""
    if not shutil.which("redis-server"):
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--bind", "127.0.0.1", "--port", str(port), "--dir", tempfile.gettempdir()]
    redis = subprocess.Popen(["redis-server", *place, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        with mock.patch.dict(os.environ, COURSE_STORAGE=f"redis://127.0.0.1:{port}"):
            yield
    finally:
        redis.terminate()
        redis.wait()
