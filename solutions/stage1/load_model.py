"""Exercise 1.1: load a chat model and its tokenizer."""

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    """Load a chat model and its tokenizer from a folder, or by its name on the model hub.

    The model is in eval mode. It is on the GPU, if there is one, in the checkpoint's own dtype;
    else on the CPU in float32. Each call loads what it is asked for, or gives again what an earlier
    call with that name loaded.

    Args:
        name_or_path: an existing folder ("~/" means your home), or a hub name such as
            "Qwen/Qwen1.5-1.8B-Chat". What looks like a path (absolute, or beginning with "./",
            "../" or "~/", or with more than one slash) is never looked up at the hub.

    Returns:
        (model, tokenizer): a causal language model, and the tokenizer from the same place.

    Raises:
        FileNotFoundError: there is no such folder, and neither the hub nor its local cache has
            a model of that name. The message contains `name_or_path` as it was given.

    Example:
        >>> model, tokenizer = load_chat_model("course/qwen/tiny")
        >>> model.dtype
        torch.float32
    """
    name = os.path.expanduser(os.fspath(name_or_path))
    is_folder = os.path.isdir(name)
    if not is_folder and _is_path(name_or_path):
        raise FileNotFoundError(f"There is no folder {name_or_path}")

    if torch.cuda.is_available():
        device, dtype = "cuda", "auto"
    elif torch.backends.mps.is_available():
        device, dtype = "mps", "auto"
    else:
        device, dtype = "cpu", torch.float32

    # the cache first: without a network, the hub would be tried for minutes
    try:
        model, tokenizer = _load(name, dtype, local_files_only=True)
    except OSError:
        if is_folder:
            raise
        _require_at_the_hub(name)
        try:
            model, tokenizer = _load(name, dtype, local_files_only=False)
        except OSError as error:
            raise FileNotFoundError(f"The hub did not give {name_or_path}: {error}") from error
    return model.to(device).eval(), tokenizer


def _load(name, dtype, local_files_only):
    model, report = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype, local_files_only=local_files_only, output_loading_info=True
    )
    # transformers makes them up and says so in a log line: the model would answer noise
    if report["missing_keys"]:
        raise ValueError(f"{name} lacks weights: {', '.join(sorted(report['missing_keys']))}")
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    return model, tokenizer


def _require_at_the_hub(name):
    """One question: transformers itself would ask ten times, and not say what was wrong."""
    from huggingface_hub import model_info
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        model_info(name)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"{name} is not a folder, and the hub has no model of that name") from error
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not a folder and not in the hub's cache, and the hub cannot be reached: {error}"
        ) from error


def _is_path(name_or_path):
    # a Path drops its leading "./", so it must not be judged by its text
    if isinstance(name_or_path, os.PathLike) or os.path.exists(name_or_path):
        return True
    return os.path.isabs(name_or_path) or name_or_path.startswith(("./", "../", "~")) or name_or_path.count("/") > 1
