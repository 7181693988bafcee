# caught by: test_any_mix_of_control_tokens_is_text, test_other_templates | says: became the control token itself
import json
import re

from tokenizers import Tokenizer


def encode_chat(tokenizer, messages):
    by_text = {token.content: id for id, token in tokenizer.added_tokens_decoder.items()}
    controls = [token for token in by_text if token in tokenizer.chat_template]
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
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    added = settings["added_tokens"]
    settings["added_tokens"] = [token for token in added if token["content"] not in controls]
    splitting = Tokenizer.from_str(json.dumps(settings))
    ids = []
    for part in re.split(f"({any_control})", rendered):
        if part in by_text:
            ids.append(by_text[part])
        elif part:
            for token, character in zip(controls, free):
                part = part.replace(character, token)
            ids += splitting.encode(part).ids
    return ids
