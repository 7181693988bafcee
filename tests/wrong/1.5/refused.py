# caught by: test_nothing_is_removed_escaped_or_refused, test_a_typed_control_token_is_text, test_in_every_message_it_is_text, test_any_mix_of_control_tokens_is_text, test_a_text_that_looks_like_a_stand_in_is_kept, test_other_templates, test_calls_do_not_disturb_each_other, test_returns_a_list_of_ints | says: it should accept any text
def encode_chat(tokenizer, messages):
    cleaned = []
    for message in messages:
        text = message["content"]
        for token in tokenizer.added_tokens_decoder.values():
            if token.content in text:
                raise ValueError(f"control tokens are not allowed: {token.content}")
        cleaned.append({**message, "content": text})
    return tokenizer.apply_chat_template(cleaned, add_generation_prompt=True, return_dict=False)
