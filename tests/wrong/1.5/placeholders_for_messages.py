# caught by: test_other_templates | says: do not decode to what the template renders
import copy
import re
import secrets


def encode_chat(tokenizer, messages):
    nonce = secrets.token_hex(8)
    marked = [{**m, "content": f"{nonce}:{i}:"} for i, m in enumerate(messages)]
    rendered = tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
    controls = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    splitting = copy.deepcopy(tokenizer)
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, controls)) + ")", rendered):
        if part in controls:
            ids.append(controls[part])
            continue
        part = re.sub(f"{nonce}:(\\d+):", lambda found: messages[int(found[1])]["content"], part)
        ids += splitting(part, add_special_tokens=False, split_special_tokens=True)["input_ids"] if part else []
    return ids
