"""Serving Qwen: a course that checks itself."""

import os

# before torch is imported anywhere: a second thread only slows the tiny model down
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
