# a right answer: switches the tokenizer to splitting for a moment, under a lock, and back
import re
import threading

_lock = threading.Lock()


def encode_chat(tokenizer, messages):
    backend = tokenizer.backend_tokenizer
    by_text = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    any_control = "|".join(re.escape(text) for text in sorted(by_text, key=len)[::-1])
    taken = set("".join(message["content"] for message in messages) + tokenizer.chat_template)
    break_at = next(chr(c) for c in range(0x10FFFF, 0, -1) if chr(c) not in taken)
    broken = []
    for message in messages:
        # a character that nobody typed breaks each typed token in two
        text = re.sub(any_control, lambda f: f[0][0] + break_at + f[0][1:], message["content"])
        while re.search(any_control, text):
            text = re.sub(any_control, lambda f: f[0][0] + break_at + f[0][1:], text)
        broken.append(message | {"content": text})
    rendered = tokenizer.apply_chat_template(broken, add_generation_prompt=True, tokenize=False)
    ids = []
    with _lock:
        before = backend.encode_special_tokens
        backend.encode_special_tokens = True
        try:
            for part in re.split(f"({any_control})", rendered):
                if part in by_text:
                    ids.append(by_text[part])
                else:
                    text = part.replace(break_at, "")
                    ids += backend.encode(text, add_special_tokens=False).ids
        finally:
            backend.encode_special_tokens = before
    return ids
