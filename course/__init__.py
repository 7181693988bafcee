"""Serving Qwen: a course that checks itself.

In a notebook, `import course` also keeps the exercise cells that you run from then on.
"""

import os
import sys

# before torch is imported anywhere: a second thread only slows the tiny model down
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_IN_NOTEBOOK = ("check", "hint", "solution", "reset", "progress")
__all__ = [*_IN_NOTEBOOK, "serve"]


def __getattr__(name):
    # imported when first used: the course command starts in a moment without them
    if name in _IN_NOTEBOOK:
        from course import notebook

        return getattr(notebook, name)
    if name == "serve":
        from course.lessons.server import serve

        return serve
    raise AttributeError(f"module 'course' has no attribute {name!r}")


if "IPython" in sys.modules:
    _shell = sys.modules["IPython"].get_ipython()
    if _shell is not None:
        from course import notebook as _notebook

        _notebook.watch(_shell)
