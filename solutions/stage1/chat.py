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

    The model's input is the system message, the history and `text`, in the tokenizer's own chat
    template, with the generation prompt. The answer ends at the tokenizer's own end token
    (`tokenizer.eos_token_id`), which is one of the model's (`model.generation_config.eos_token_id`, a
    list). Whether it also ends at the others is not graded. Nothing is kept between calls.

    Args:
        model, tokenizer: as returned by `load_chat_model`.
        text: what the user says now. Spaces and newlines reach the model unchanged.
        history: earlier turns, oldest first. Each is a pair (user, assistant): a tuple or a list.
        system: the system message. Even an empty one is passed to the model.
        max_new_tokens: the maximum number of tokens in the answer.
        temperature: 0 always picks the most likely token. Above 0, each token is sampled from
            softmax(logits / temperature) (tested from 0.001 to 50). The checkpoint's own settings
            have no effect: top_k, top_p, min_p, repetition_penalty, no_repeat_ngram_size, num_beams,
            min_length, min_new_tokens, suppress_tokens, bad_words_ids.

    Returns:
        (reply, history): the new tokens as text, without special tokens (whitespace at either end is
        up to you); and a new list, which is the history with (text, reply) added at the end. The
        caller's list is not changed.

    Raises:
        ValueError: `text` is empty (or only whitespace, if you like), or `temperature` is negative.

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
        top_k=0 if temperature > 0 else None,  # the default is 50
        max_new_tokens=max_new_tokens,
    )

    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    reply = tokenizer.decode(new_tokens, skip_special_tokens=True)
    return reply, [*history, (text, reply)]


def _without_settings(model, tokenizer):
    """The same model, with only those of its generation settings that end an answer."""
    import copy

    from transformers import GenerationConfig

    # generate() takes whatever it is not given from the model's own generation_config, even what a
    # `generation_config=` leaves out
    model = copy.copy(model)
    model.generation_config = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
