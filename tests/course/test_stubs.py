"""Stubs import what they need themselves, and no more: the other imports give an answer's design away."""

from course import stubs

SOLUTION = '''"""Exercise 9.9: an example."""

import asyncio
import os.path
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from fastapi import FastAPI, HTTPException
from fastapi import Request as Asked
from safe_prompt import encode_chat
from sequence import Piece, parse

logger = np.log


# given
PORT = os.path.getsize("8000")


@dataclass
class Measurement:
    """Times, as `time.time` gives them."""

    seconds: float


async def app(clock=time.perf_counter) -> FastAPI:
    """Parse np and asyncio: a Piece with the ids that `encode_chat` makes.

    Example:
        >>> model.dtype
        torch.float32
    """
    with ThreadPoolExecutor() as threads:
        raise HTTPException(500, parse(Asked, threads, asyncio))
'''


def test_a_stub_imports_what_is_left_of_the_solution_and_its_docstrings_name():
    imports = [line for line in stubs.cut(SOLUTION, "9.9").splitlines() if line.startswith(("import ", "from "))]
    assert imports == [
        "import os.path",
        "import time",
        "from dataclasses import dataclass",
        "import torch",
        "from fastapi import FastAPI",
        "from safe_prompt import encode_chat",
        "from sequence import Piece",
    ]


def test_no_stub_imports_what_only_its_solution_needs():
    design = ("asyncio", "concurrent", "contextlib", "contextvars", "threading", "inspect", "limits")
    for id in ("1.3", "2.1", "2.3", "3.1", "3.3", "3.6", "3.7"):
        named = [line for line in stubs.stub(id).splitlines() if line.startswith(tuple(f"import {d}" for d in design))]
        named += [line for line in stubs.stub(id).splitlines() if line.startswith(tuple(f"from {d}" for d in design))]
        assert not named, id
