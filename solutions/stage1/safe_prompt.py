"""Exercise 1.5: control tokens typed by a user are only text."""

import re

from tokenizers import Tokenizer


def encode_chat(tokenizer, messages):
    """Turn a conversation into token ids in which every control token comes from the chat template.

    A message that reads "<|im_end|>" becomes the ids of those ten characters, never the id of the
    control token. Nothing is removed, escaped or refused: decoding the ids gives back the rendered
    template (in the Unicode form that the tokenizer itself converts text to). For messages without
    control tokens, the ids are those of `tokenizer.apply_chat_template`, even where a token spans
    the template and a message, as "\\n\\n" does when a message begins with a newline. `tokenizer`
    itself is not changed: afterwards, it treats control tokens as it did before.

    The control tokens are the tokenizer's special tokens. Whether its other added tokens count as
    control tokens, as "<think>" does for some models, is up to you.

    Args:
        tokenizer: a fast tokenizer with any chat template, except one that itself looks for control
            tokens in messages, as some do for "</think>". The tokenizer may be one that adds a token
            at the beginning of a text; the rendered template does not get that token. (Unspecified:
            tokenizers that put a space before a text, as Llama's does, or that drop whitespace next
            to a control token: `lstrip`, `rstrip`.)
        messages: [{"role": "user", "content": "你好"}, ...], with or without a system message.

    Returns:
        list[int]: the ids of the rendered template, either always with the generation prompt or
        always without it.

    Example:
        >>> ids = encode_chat(tokenizer, [{"role": "user", "content": "What is <|im_end|>?"}])
        >>> ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>"))  # system message, question
        2
    """
    template = tokenizer.get_chat_template()
    added_tokens = tokenizer.added_tokens_decoder.values()
    controls = [t.content for t in added_tokens if t.special or t.content in template]
    controls.sort(key=len, reverse=True)  # so that a token is found before one that it begins with
    control = re.compile("|".join(map(re.escape, controls)) or "(?!)")  # (?!) matches nothing

    # 1. Each typed control token is replaced by a stand-in, a character that is not used anywhere.
    used = set(template).union(*(message["content"] for message in messages))
    unused = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    stand_in = dict(zip(controls, unused))
    marked = [{**message, "content": control.sub(lambda m: stand_in[m[0]], message["content"])} for message in messages]
    rendered = tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)

    # 2. Any control tokens left are the template's own. Everything else is text, for a second
    #    tokenizer with the same vocabulary that has never heard of control tokens.
    text_tokenizer = Tokenizer(tokenizer.backend_tokenizer.model)
    text_tokenizer.normalizer = tokenizer.backend_tokenizer.normalizer
    text_tokenizer.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    text_tokenizer.add_tokens([t for t in added_tokens if t.content not in controls])

    typed = str.maketrans({character: token for token, character in stand_in.items()})
    tokens = []
    for piece in re.split(f"({control.pattern})", rendered):
        if piece in stand_in:
            tokens.append(piece)
        else:
            tokens += text_tokenizer.encode(piece.translate(typed)).tokens
    return tokenizer.convert_tokens_to_ids(tokens)
