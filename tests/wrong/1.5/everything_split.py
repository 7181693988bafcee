# caught by: test_without_control_tokens_the_ids_are_the_templates, test_a_typed_control_token_is_text, test_in_every_message_it_is_text, test_any_mix_of_control_tokens_is_text, test_a_text_that_looks_like_a_stand_in_is_kept, test_other_templates, test_calls_do_not_disturb_each_other | says: is no longer a control token
def encode_chat(tokenizer, messages):
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, split_special_tokens=True)["input_ids"]
