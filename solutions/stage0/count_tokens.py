"""Exercise 0.1: how many tokens a text has."""


def count_tokens(tokenizer, text):
    """Count the tokens that the model sees in a text.

    Args:
        tokenizer: a Hugging Face tokenizer. Qwen's does not add any tokens to the text; if another
            tokenizer does, it is up to you whether to count them.
        text: any string, however long. All of it is counted.

    Returns:
        The number of tokens, an int; 0 for an empty text. No chat template is applied.

    Example:
        >>> count_tokens(tokenizer, "")
        0
    """
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
