# a right answer: TextIteratorStreamer with generate in a thread, a GenerationConfig of its own
import copy
from threading import Thread

from transformers import GenerationConfig, TextIteratorStreamer


class EmptyText(ValueError):
    pass


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
    if len(text) == 0:
        raise EmptyText()
    if temperature < 0:
        raise ValueError("negative temperature")
    conversation = [{"role": "system", "content": system}]
    for question, answer in history or []:
        conversation.append({"role": "user", "content": question})
        conversation.append({"role": "assistant", "content": answer})
    conversation.append({"role": "user", "content": text})
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    plain = copy.copy(model)
    plain.generation_config = GenerationConfig()
    if temperature > 0:
        how = GenerationConfig(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    else:
        how = GenerationConfig(do_sample=False)
    how.max_new_tokens = max_new_tokens
    how.eos_token_id = model.generation_config.eos_token_id
    how.pad_token_id = tokenizer.pad_token_id
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    thread = Thread(
        target=plain.generate, kwargs={**inputs, "generation_config": how, "streamer": streamer}
    )
    thread.start()
    reply = "".join(streamer)
    thread.join()
    history = copy.deepcopy(list(history or []))
    history.append((text, reply))
    return reply, history
