# a right answer: transformers' own text-generation pipeline
from transformers import pipeline


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
    if not isinstance(text, str) or not text:
        raise ValueError("text must be a non-empty string")
    if temperature < 0:
        raise ValueError("temperature must not be negative")
    history = list(history) if history else []
    messages = [{"role": "system", "content": system}]
    for user, assistant in history:
        messages.append({"role": "user", "content": user})
        messages.append({"role": "assistant", "content": assistant})
    messages.append({"role": "user", "content": text})
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature}
    [output] = generator(
        messages, max_new_tokens=max_new_tokens, return_full_text=False, **sampling
    )
    reply = output["generated_text"]
    return reply, history + [(text, reply)]
