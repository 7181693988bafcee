# caught by: test_a_text_that_looks_like_a_stand_in_is_kept | says: a placeholder can be typed
import copy
import re

MARK = "\N{WORD JOINER}"


def encode_chat(tokenizer, messages):
    names = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    token = re.compile("|".join(map(re.escape, names)))

    def broken(text):
        return token.sub(lambda found: found[0][0] + MARK + found[0][1:], text)

    safe = [message | {"content": broken(message["content"])} for message in messages]
    prompt = tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
    plain = copy.deepcopy(tokenizer)
    ids = []
    for text in re.split(f"({token.pattern})", prompt):
        if text in names:
            ids.append(tokenizer.convert_tokens_to_ids(text))
        else:
            ids += plain.encode(text.replace(MARK, ""), add_special_tokens=False, split_special_tokens=True)
    return ids
