"""A small app with a model of its own, to see what each worker of exercise 2.5 costs."""

import os
import time

import psutil
import torch
from fastapi import FastAPI
from transformers import AutoModelForCausalLM

from course.qwen.models import model_path


def build() -> FastAPI:
    """GET / -> {"pid": ..., "before_mb": ..., "memory_mb": ...}; each takes its process 50 ms.

    The memory is the process's own, without what it shares with others: before and after the
    model was loaded.
    """
    before = _own_mb()
    app = FastAPI()
    app.state.model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)

    @app.get("/")
    async def who():
        time.sleep(0.05)  # blocks on purpose: the next request is another process's
        return {"pid": os.getpid(), "before_mb": before, "memory_mb": _own_mb()}

    return app


def _own_mb():
    return psutil.Process().memory_full_info().uss / 1e6
