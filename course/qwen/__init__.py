"""The course's own tiny Qwen2 chat model, and how it was made."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
