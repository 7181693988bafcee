"""0.1: how many tokens is this text?"""


def count_tokens(tokenizer, text):
    """Count the tokens of a text, as the model would see it.

    Args:
        tokenizer: a Hugging Face tokenizer. Qwen's adds no tokens of its own; with one that does,
            whether you count them is up to you.
        text: any string, however long. All of it is counted.

    Returns:
        The number of tokens, an int: 0 for an empty text. No chat template is applied.

    Example:
        >>> count_tokens(tokenizer, "")
        0
    """
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
