# caught by: test_the_model_reads_the_history | says: the whole conversation, oldest turn first
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
    if not text or temperature < 0:
        raise ValueError("a text, and a temperature of at least 0")
    history = list(history or [])
    messages = [{"role": "system", "content": system}]
    for user, assistant in history[-5:]:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    messages.append({"role": "user", "content": text})
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, **{"do_sample": False, **sampling}
    )
    new_tokens = output[0, inputs["input_ids"].shape[1] :]
    reply = tokenizer.decode(new_tokens, skip_special_tokens=True)
    return reply, [*history, (text, reply)]
