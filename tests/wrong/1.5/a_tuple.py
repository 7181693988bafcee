# caught by: test_returns_a_list_of_ints | says: a plain list of ints
import copy
import re
import uuid


def encode_chat(tokenizer, messages):
    control_ids = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    names = sorted(control_ids, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")")
    everything = "".join(m["content"] for m in messages)
    nonce = uuid.uuid4().hex
    while nonce in everything:
        nonce = uuid.uuid4().hex

    def hide(text):
        return pattern.sub(lambda found: f"[{nonce}:{names.index(found[0])}]", text)

    def show(text):
        return re.sub(rf"\[{nonce}:(\d+)\]", lambda found: names[int(found[1])], text)

    hidden = [{"role": m["role"], "content": hide(m["content"])} for m in messages]
    rendered = tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=True)

    splitting = copy.deepcopy(tokenizer)
    splitting.backend_tokenizer.encode_special_tokens = True
    ids = []
    for part in pattern.split(rendered):
        if part in control_ids:
            ids.append(control_ids[part])
        elif part:
            ids.extend(splitting.backend_tokenizer.encode(show(part), add_special_tokens=False).ids)
    return tuple(ids)
