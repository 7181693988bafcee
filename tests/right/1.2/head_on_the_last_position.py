# a right answer: decoder and head called apart, the head on the last position alone
import torch


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
    step, cache, new_ids = torch.tensor([ids], device=model.device), None, []
    with torch.no_grad():
        for _ in range(max_new_tokens):
            seen = model.model(input_ids=step, past_key_values=cache, use_cache=True)
            cache = seen.past_key_values
            logits = model.lm_head(seen.last_hidden_state[:, -1]).float()
            if temperature == 0:
                step = logits.argmax(-1, keepdim=True)
            else:
                step = torch.multinomial((logits / temperature).softmax(-1), 1)
            if step.item() in model.generation_config.eos_token_id:
                break
            new_ids.append(step.item())
    reply = tokenizer.decode(new_ids, skip_special_tokens=True)
    return reply, history + [(text, reply)]
