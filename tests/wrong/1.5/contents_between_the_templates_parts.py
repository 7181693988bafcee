# caught by: test_without_control_tokens_the_ids_are_the_templates, test_other_templates | says: encoded piece by piece
import copy
import re


def encode_chat(tokenizer, messages):
    splitting = copy.deepcopy(tokenizer)
    marked = [{**m, "content": f" Q{i}message{i}Q "} for i, m in enumerate(messages)]
    rendered = tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
    ids = []
    for part in re.split(r"( ?Q\d+message\d+Q ?)", rendered):
        if found := re.fullmatch(r"( ?)Q(\d+)message\d+Q ?", part):
            part = messages[int(found[2])]["content"]
            part = part if found[1] else part.strip()
            ids += splitting(part, add_special_tokens=False, split_special_tokens=True)["input_ids"] if part else []
        elif part:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids
