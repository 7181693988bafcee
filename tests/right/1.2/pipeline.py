# a right answer: transformers' own text-generation pipeline, around a model without settings
from copy import copy

from transformers import GenerationConfig, pipeline


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
    ends, model = model.generation_config.eos_token_id, copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    sampling = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    [output] = generator(
        messages, max_new_tokens=max_new_tokens, return_full_text=False, **sampling
    )
    reply = output["generated_text"]
    return reply, history + [(text, reply)]
