# a right answer: control tokens in the messages travel through the template as private use characters
import copy
import re


def encode_chat(tokenizer, messages):
    by_text = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    controls = list(by_text)
    any_control = "|".join(map(re.escape, controls))
    taken = set("".join(message["content"] for message in messages))
    free = [chr(code) for code in range(0xE000, 0xF000) if chr(code) not in taken]
    typed = []
    for message in messages:
        text = message["content"]
        for token, character in zip(controls, free):
            text = text.replace(token, character)
        typed.append({**message, "content": text})
    rendered = tokenizer.apply_chat_template(typed, add_generation_prompt=True, tokenize=False)
    splitting = copy.deepcopy(tokenizer)
    ids = []
    for part in re.split(f"({any_control})", rendered):
        if part in by_text:
            ids.append(by_text[part])
        elif part:
            for token, character in zip(controls, free):
                part = part.replace(character, token)
            ids += splitting(part, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids
