"""The model of a lesson's server."""

from transformers.utils.logging import disable_progress_bar

from course.qwen.models import model_path


def model_folder(name: str | None) -> str:
    """`model_path(name)`. A download shows its progress; reading the weights afterwards does not."""
    path = model_path(name)
    disable_progress_bar()
    return path
