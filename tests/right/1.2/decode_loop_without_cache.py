# a right answer: the whole sequence at each step, Gumbel noise for drawing, one look too far
import torch


def chat(model, tokenizer, text, history=None, *, system="You are a helpful assistant.",
         max_new_tokens=256, temperature=0.0):  # fmt: skip
    if temperature < 0 or text == "":
        raise ValueError(f"cannot answer {text!r} at temperature {temperature}")
    messages = [{"role": "system", "content": system}]
    for user, assistant in history or ():
        messages += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ]
    messages += [{"role": "user", "content": text}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    prompt = list(encoded["input_ids"]) if hasattr(encoded, "keys") else list(encoded)
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])

    ids = list(prompt)
    while True:
        with torch.no_grad():
            logits = model.forward(torch.tensor([ids], device=model.device), use_cache=False).logits
        if len(ids) - len(prompt) >= max_new_tokens:
            break
        scores = logits[0, -1]
        if temperature:
            noise = -torch.log(-torch.log(torch.rand_like(scores).clamp(1e-9, 1 - 1e-7)))
            scores = scores / temperature + noise
        best = scores.argmax().item()
        if best in ends:
            break
        ids.append(best)
    special = set(tokenizer.all_special_ids)
    reply = tokenizer.decode([id for id in ids[len(prompt) :] if id not in special])
    return reply, [*map(tuple, history or []), (text, reply)]
