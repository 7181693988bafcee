# a right answer: a twin rendering of the same length says where the template's tokens stand
import copy
import re


def _rendered(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode_chat(tokenizer, messages):
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    find = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)))
    blind = [{**m, "content": find.sub(lambda f: "x" * len(f[0]), m["content"])} for m in messages]
    text, twin = _rendered(tokenizer, messages), _rendered(tokenizer, blind)
    assert len(text) == len(twin)
    pieces = copy.deepcopy(tokenizer)
    ids, at = [], 0
    for found in find.finditer(twin):
        ids += _split(pieces, text[at : found.start()])
        ids.append(tokenizer.convert_tokens_to_ids(found[0]))
        at = found.end()
    return ids + _split(pieces, text[at:])


def _split(tokenizer, text):
    if not text:
        return []
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
