# a right answer: an own decode loop with a cache; the template as text, then tokenized
import torch


@torch.inference_mode()
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
    if not text:
        raise ValueError("say something")
    if temperature < 0.0:
        raise ValueError("temperature must be 0 or more")

    turns = [] if history is None else list(history)
    messages = [dict(role="system", content=system)]
    for pair in turns:
        messages.append(dict(role="user", content=pair[0]))
        messages.append(dict(role="assistant", content=pair[1]))
    messages.append(dict(role="user", content=text))
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids

    stop = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    next_ids = ids.to(model.device)
    cache = None
    new = []
    while len(new) < max_new_tokens:
        out = model(input_ids=next_ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[0, -1].float()
        if temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(torch.softmax(logits / temperature, -1), 1))
        if token in stop:
            break
        new.append(token)
        next_ids = torch.tensor([[token]], device=model.device)
    reply = tokenizer.decode(new, skip_special_tokens=True).strip()
    return reply, turns + [[text, reply]]
