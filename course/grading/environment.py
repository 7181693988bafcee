"""The environment in which answers run, the same on every machine."""

import os
import stat
import tempfile
from pathlib import Path

from course.qwen import TINY

CACHED_NAME = "serving-qwen/cached"
"""A hub name that the rooms find in their hub cache: the tiny Qwen again."""
LONGEST_FOLDER = 70
"""Bytes. A socket's whole path has at most 103 on macOS and 107 on Linux; 29 follow the folder."""


def environment() -> dict[str, str]:
    """One torch thread, no hub but a small cache, no GPU, no proxies; the rest is inherited."""
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    inherited = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    for key in ("HF_ENDPOINT", "HF_HUB_CACHE", "TRANSFORMERS_CACHE", "PYTHONSTARTUP"):
        inherited.pop(key, None)
    return inherited | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(_hub_home()),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def temporary_folder() -> Path:
    """A folder for what may be lost, readable by its owner alone. Where TMPDIR is too long for a socket
    in it, the folder is in /tmp.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    # the user's number: a user may have no name, or a long one
    name = f"serving-qwen-{os.getuid()}" if hasattr(os, "getuid") else "serving-qwen"
    folder = Path(tempfile.gettempdir()).absolute() / name
    if hasattr(os, "getuid") and len(os.fsencode(folder)) > LONGEST_FOLDER:
        folder = Path("/tmp", name)
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise PermissionError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
        folder.chmod(0o700)
    return folder


def _hub_home():
    # never removed: a room may be reading from it
    newest = max(file.stat().st_mtime_ns for file in TINY.iterdir())
    home = temporary_folder() / f"hub-{newest}"
    cached = home / "hub" / f"models--{CACHED_NAME.replace('/', '--')}"
    snapshot = cached / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in TINY.iterdir():
        if file.is_file() and not (snapshot / file.name).exists():
            half = snapshot / f"{file.name}-{os.getpid()}"
            half.write_bytes(file.read_bytes())
            half.replace(snapshot / file.name)
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / "main").write_text(snapshot.name, encoding="utf-8")
    return home
