# caught by: test_without_control_tokens_the_ids_are_the_templates, test_a_text_that_looks_like_a_stand_in_is_kept, test_other_templates, test_nothing_is_removed_escaped_or_refused | says: do not decode to what the template renders
def encode_chat(tokenizer, messages):
    cleaned = []
    for message in messages:
        text = message["content"]
        text = text.replace("<", "&lt;").replace(">", "&gt;")
        cleaned.append({**message, "content": text})
    return tokenizer.apply_chat_template(cleaned, add_generation_prompt=True, return_dict=False)
