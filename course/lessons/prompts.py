"""Lets 1.5's `encode_chat` make the ids of prompts for chats that only know `apply_chat_template`."""

import copy

from transformers import BatchEncoding

from course.answers import NotReady, load
from course.records import ever_passed

HELLO = [{"role": "user", "content": "Hello"}]


def encoder(solution: bool):
    """The reference's `encode_chat`, or the learner's if it has passed; otherwise None."""
    if not solution and not ever_passed("1.5"):
        return None
    try:
        return load("1.5", "encode_chat", solution=solution)
    except NotReady:
        return None


def encoded_by(encode_chat, tokenizer):
    """The tokenizer or, if there is an `encode_chat`, a copy whose `apply_chat_template` returns the ids from that.

    Not covered: a chat that asks for the template's text (`tokenize=False`) and turns it into ids itself.
    """
    if encode_chat is None:
        return tokenizer
    without, with_prompt = (
        tokenizer.apply_chat_template(HELLO, add_generation_prompt=asked, return_dict=False) for asked in (False, True)
    )
    prompt = with_prompt[len(without) :]
    has_prompt = encode_chat(tokenizer, HELLO) == with_prompt

    def apply_chat_template(
        messages, *, tokenize=True, add_generation_prompt=False, return_dict=True, return_tensors=None, **rest
    ):
        if not tokenize:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **rest
            )
        ids = encode_chat(tokenizer, messages)
        if has_prompt:
            ids = ids[: len(ids) - len(prompt)]
        if add_generation_prompt:
            ids = ids + prompt
        made = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        batch = BatchEncoding(made, tensor_type=return_tensors, prepend_batch_axis=return_tensors is not None)
        return batch if return_dict else batch["input_ids"]

    safe = copy.copy(tokenizer)
    safe.apply_chat_template = apply_chat_template
    return safe
