# caught by: test_nothing_is_kept_between_calls, test_at_most_max_new_tokens, test_temperature_0_takes_the_likeliest_token | says: the model was not asked
remembered = {}


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
    if text == "":
        raise ValueError("text is empty")
    if temperature < 0:
        raise ValueError("temperature is negative")
    history = list(history or [])
    messages = [{"role": "system", "content": system}]
    for user, assistant in history:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    messages.append({"role": "user", "content": text})
    key = (str(messages), max_new_tokens)
    if temperature == 0 and key in remembered:
        reply = remembered[key]
        return reply, history + [(text, reply)]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    if temperature == 0:
        sampling = {"do_sample": False}
    else:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    output = model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens)
    new_ids = output[0][inputs["input_ids"].shape[1] :]
    reply = tokenizer.decode(new_ids, skip_special_tokens=True)
    if temperature == 0:
        remembered[key] = reply
    return reply, history + [(text, reply)]
