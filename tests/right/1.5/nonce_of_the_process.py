# a right answer: a mark drawn once at import, which nobody can type, and a tokenizer without tokens
import json
import re
import secrets

from tokenizers import Tokenizer

NONCE = secrets.token_urlsafe(12)


def encode_chat(tokenizer, messages):
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    ids_of = {token["content"]: token["id"] for token in settings["added_tokens"]}
    text_only = Tokenizer.from_str(json.dumps({**settings, "added_tokens": [], "post_processor": None}))
    control = re.compile("|".join(map(re.escape, sorted(ids_of, key=len, reverse=True))))

    def hidden(content):
        return control.sub(lambda found: found[0][:1] + NONCE + found[0][1:], content)

    conversation = [{**each, "content": hidden(each["content"])} for each in messages]
    prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    ids, at = [], 0
    for found in control.finditer(prompt):
        ids += text_only.encode(prompt[at : found.start()].replace(NONCE, "")).ids
        ids.append(ids_of[found[0]])
        at = found.end()
    return ids + text_only.encode(prompt[at:].replace(NONCE, "")).ids
