"""Exercise 1.2: one turn of a conversation."""


def chat(
    model,
    tokenizer,
    text,
    history=None,
    *,
    system="You are a helpful assistant.",
    max_new_tokens=256,
    temperature=0.0,
):
    """Answer `text`, given what was said before.

    The model is given the tokenizer's own chat template of the system line, the history and
    `text`, with the generation prompt. Its answer ends at the tokenizer's own end token.
    Whether the model's other ones (`model.generation_config.eos_token_id`, a list) end it too is not
    graded. Nothing is kept between calls.

    Args:
        model, tokenizer: as `load_chat_model` returns them.
        text: what the user says now. Blanks and newlines reach the model as they are.
        history: earlier turns, oldest first: pairs (user, assistant), as tuples or lists.
        system: the system line. An empty one reaches the model, too.
        max_new_tokens: the answer has at most this many tokens.
        temperature: 0 always takes the likeliest token. Above 0 each token is drawn from
            softmax(logits / temperature) (tested from 0.001 to 50). The checkpoint's own settings
            change nothing: top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, num_beams,
            min_length, min_new_tokens, suppress_tokens, bad_words_ids.

    Returns:
        (reply, history): the new tokens as text, without special tokens; and a new list, the
        history with (text, reply) at its end. The caller's list is not changed.

    Raises:
        ValueError: `text` is empty (or, if you like, only whitespace), or `temperature` is negative.

    Example:
        >>> reply, history = chat(model, tokenizer, "My name is Alice.")
        >>> reply, history = chat(model, tokenizer, "What is my name?", history)
        >>> len(history)
        2
    """
    if text == "":
        raise ValueError("text is empty")
    if temperature < 0:
        raise ValueError(f"temperature is negative: {temperature}")
    history = list(history or [])

    messages = [{"role": "system", "content": system}]
    for user, assistant in history:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    messages.append({"role": "user", "content": text})
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)

    output = _without_settings(model, tokenizer).generate(
        **inputs,
        do_sample=temperature > 0,
        temperature=float(temperature) if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,  # left out, it is 50
        max_new_tokens=max_new_tokens,
    )

    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    reply = tokenizer.decode(new_tokens, skip_special_tokens=True)
    return reply, [*history, (text, reply)]


def _without_settings(model, tokenizer):
    """The same model, and of its generation settings only those that end an answer."""
    import copy

    from transformers import GenerationConfig

    # what generate() is not given, it takes from the model's own generation_config: even what a
    # `generation_config=` leaves out
    model = copy.copy(model)
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
