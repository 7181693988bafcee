"""Exercise 1.1: load a chat model and its tokenizer."""

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_chat_model(name_or_path):
    """Load a chat model and its tokenizer, from a folder or by name from the model hub.

    The model is in eval mode. If there is a CUDA GPU, it is on the GPU in the checkpoint's own dtype;
    otherwise, it is on the CPU in float32. (Apple's GPUs are up to you.) You may keep models: a
    second call with the same name may return what the first one loaded.

    Args:
        name_or_path: an existing folder ("~/" is your home directory), or a hub name such as
            "Qwen/Qwen1.5-1.8B-Chat". Anything that looks like a path (absolute, or beginning with
            "./", "../" or "~/", or with more than one slash) is never looked up on the hub.

    Returns:
        (model, tokenizer): a causal language model, and the tokenizer from the same place.

    Raises:
        FileNotFoundError: there is no such folder, and neither the hub nor its local cache has
            a model with that name. The message contains `name_or_path` exactly as given.

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

    # the cache first: without a network, transformers would keep trying the hub for minutes
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
    # transformers fills them with random numbers and only logs it: the answers would be noise
    if report["missing_keys"]:
        raise ValueError(f"{name} lacks weights: {', '.join(sorted(report['missing_keys']))}")
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
    return model, tokenizer


def _require_at_the_hub(name):
    """Ask once: transformers itself would ask ten times, and not say what was wrong."""
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
