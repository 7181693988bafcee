"""The tiny Qwen as the grader uses it: loaded once in the fork server, shared by every room."""

import functools


@functools.cache
def tiny():
    """(model, tokenizer): float32, on the CPU, in eval mode."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from course.qwen import TINY

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(TINY)
