"""Where the course's model comes from: the tiny model, a folder, Hugging Face or ModelScope.

COURSE_MODEL   a folder, or a hub name such as Qwen/Qwen1.5-1.8B-Chat; the tiny model if not set
COURSE_HUB     where hub names are looked up: huggingface (also if not set) or modelscope
"""

import functools
import os
from pathlib import Path

from course.qwen import TINY
from course.qwen.checkpoint import model_type, problems
from course.words import words

HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}

# enough to load a model and its tokenizer, without second copies of the weights
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


class ModelUnavailable(FileNotFoundError):
    """The requested model is not available. The message says why and what to do."""


def model_path(name: str | os.PathLike | None = None) -> str:
    """The absolute path of a complete checkpoint folder, for from_pretrained.

    `name` is a folder or a hub name; None means COURSE_MODEL. A folder wins over a hub name. A path
    (absolute, ./, ../, ~, or with more than one slash) is never looked up on a hub. If all files of a
    hub name are in the local cache, the network is not used; otherwise, the files are downloaded, with
    a progress bar.

    Raises ModelUnavailable.
    """
    name = str(name or os.environ.get("COURSE_MODEL") or TINY)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _complete(name, folder.absolute())
    if _is_path(name):
        missing = words("There is no folder {name}.", name=name)
        raise ModelUnavailable(f"{missing}\n{_advice(words('Check the path, or change COURSE_MODEL.'))}")
    return _fetch(name)


@functools.cache
def tiny():
    """(model, tokenizer) of the tiny Qwen: float32, on the CPU, in eval mode. Every call returns the same objects."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(TINY)


def _is_path(name: str) -> bool:
    return (
        Path(name).is_absolute()
        or name.startswith((".", "~"))
        or name.count("/") > 1
        or name.endswith("/")
        or "\\" in name
    )


def _complete(name: str, folder: Path) -> str:
    wrong = problems(folder)
    if wrong:
        raise ModelUnavailable(
            words("{name} is not a complete model folder ({folder}). What is wrong:", name=name, folder=folder)
            + "\n"
            + "".join(f"- {line}\n" for line in wrong)
            + _advice(words("Download or copy it again."))
        )
    if model_type(folder) == "qwen":
        raise ModelUnavailable(_legacy(name, str(folder)))
    return str(folder)


def _fetch(name: str) -> str:
    hub = os.environ.get("COURSE_HUB") or "huggingface"
    if hub not in HUBS:
        known = ", ".join(HUBS)
        said = words(
            "COURSE_HUB is {hub}, but the course supports only: {known}. Set it to one of them.",
            hub=repr(hub),
            known=known,
        )
        raise ModelUnavailable(said)
    if hub == "huggingface":
        from huggingface_hub import snapshot_download
    else:
        try:
            from modelscope import snapshot_download
        except ImportError as error:
            said = words("COURSE_HUB=modelscope needs one more package: pip install modelscope")
            raise ModelUnavailable(said) from error

    # both hubs raise many kinds of errors, some of them plain Exceptions
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    except Exception:
        folder = None
    if folder is None or problems(folder):
        try:
            # the small file first, because it may say that the large ones are of no use
            folder = Path(snapshot_download(name, allow_patterns=["config.json"]))
            if model_type(folder) != "qwen":
                folder = Path(snapshot_download(name, allow_patterns=_FILES))
        except Exception as error:
            raise _refused(name, hub, error) from error
    if model_type(folder) == "qwen":
        raise ModelUnavailable(_legacy(name, None))
    return _complete(name, folder.absolute())


def _refused(name: str, hub: str, error: Exception) -> ModelUnavailable:
    # the hub's own FileNotFoundError only says that its cache did not help either
    if isinstance(error, FileNotFoundError):
        error = error.__cause__ or error
    reason = str(error).strip().split("\n")[0]
    other = next(each for each in HUBS if each != hub)
    return ModelUnavailable(
        words(
            "The model {name} is not on this computer, and could not be downloaded from {hub}:",
            name=name,
            hub=HUBS[hub],
        )
        + f"\n{type(error).__name__}: {reason}\n"
        + _advice(
            words("Check the name and the network, then try again."),
            words("Try the other hub: COURSE_HUB={other}", other=other),
        )
    )


def _advice(*first: str) -> str:
    lines = [
        *first,
        words("Use the course's own tiny model, which needs no network: unset COURSE_MODEL"),
        words("Use a model that you already have: COURSE_MODEL=/path/to/its/folder"),
    ]
    return words("What you can do:") + "\n" + "\n".join(f"- {line}" for line in lines)


def _legacy(name: str, folder: str | None) -> str:
    steps = [] if folder else [f"hf download {name} --local-dir qwen1"]
    steps += [f"course convert-qwen1 {folder or 'qwen1'} qwen1-native", "COURSE_MODEL=qwen1-native"]
    said = words(
        "{name} is a checkpoint of the first Qwen generation. It comes with its own model code, "
        "which current transformers cannot run.",
        name=name,
    )
    return "\n".join([said, words("Convert it once:"), *(f"    {step}" for step in steps)])
