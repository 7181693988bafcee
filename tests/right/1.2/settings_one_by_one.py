# a right answer: takes back each of the checkpoint's settings by name; ids and mask made by hand, any keyword
import torch

NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "suppress_tokens": None,
    "bad_words_ids": None,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
}


def _messages(system, history, text):
    yield {"role": "system", "content": system}
    for pair in history:
        for role, content in zip(("user", "assistant"), pair):
            yield {"role": role, "content": content}
    yield {"role": "user", "content": text}


def chat(model, tokenizer, text, history=None, **options):
    system = options.pop("system", "You are a helpful assistant.")
    max_new_tokens = options.pop("max_new_tokens", 256)
    temperature = options.pop("temperature", 0.0)
    if options:
        raise TypeError(f"unknown: {', '.join(options)}")
    if text == "" or temperature < 0:
        raise ValueError("text must not be empty, and temperature must not be negative")
    past = tuple(history) if history else ()
    ids = tokenizer.apply_chat_template(
        list(_messages(system, past, text)), add_generation_prompt=True, return_dict=False
    )
    input_ids = torch.tensor([ids]).to(model.device)
    sampling = {"do_sample": True, "temperature": float(temperature)} if temperature > 0 else {}
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        **NEUTRAL,
        **(sampling or {"do_sample": False}),
        return_dict_in_generate=True,
    )
    new = output.sequences[0].tolist()[len(ids) :]
    reply = tokenizer.decode(new, skip_special_tokens=True)
    updated = list(past)
    updated.append([text, reply])
    return reply, updated
