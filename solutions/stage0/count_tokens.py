"""0.1: how many tokens is this text?"""


def count_tokens(tokenizer, text):
    """Count the tokens of a text, as the model would see it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        text: any string, also an empty one.

    Returns:
        The number of tokens, an int. No chat template is applied and nothing is added.

    Example:
        >>> count_tokens(tokenizer, "")
        0
    """
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
