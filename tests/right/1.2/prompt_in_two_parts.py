# a right answer: the model reads all of the prompt but its last token first
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
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([ids], device=model.device)
    cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    step, new_ids = ids[:, -1:], []
    while len(new_ids) < max_new_tokens:
        logits = model(input_ids=step, past_key_values=cache).logits[:, -1].float()
        if temperature == 0:
            step = logits.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial((logits / temperature).softmax(-1), 1)
        if step.item() in model.generation_config.eos_token_id:
            break
        new_ids.append(step.item())
    reply = tokenizer.decode(new_ids, skip_special_tokens=True)
    return reply, history + [(text, reply)]
