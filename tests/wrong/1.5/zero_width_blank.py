# caught by: test_nothing_is_removed_escaped_or_refused, test_other_templates | says: something was removed or changed
def encode_chat(tokenizer, messages):
    cleaned = []
    for message in messages:
        text = message["content"]
        for token in tokenizer.added_tokens_decoder.values():
            text = text.replace(token.content, token.content[0] + "\u200b" + token.content[1:])
        cleaned.append({**message, "content": text})
    return tokenizer.apply_chat_template(cleaned, add_generation_prompt=True, return_dict=False)
