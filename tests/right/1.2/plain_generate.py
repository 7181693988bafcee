# a right answer: one call of generate, by a copy of the model without the checkpoint's settings
import copy

from transformers import GenerationConfig


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
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    ends = model.generation_config.eos_token_id
    model = copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature}
    output = model.generate(**inputs, **sampling, max_new_tokens=max_new_tokens)
    new_ids = output[0][inputs["input_ids"].shape[1] :]
    reply = tokenizer.decode(new_ids, skip_special_tokens=True)
    return reply, history + [(text, reply)]
