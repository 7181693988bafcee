# caught by: test_a_typed_control_token_is_text, test_in_every_message_it_is_text, test_any_mix_of_control_tokens_is_text, test_a_text_that_looks_like_a_stand_in_is_kept, test_other_templates | says: became the control token itself
def encode_chat(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
