# caught by: test_the_model_reads_the_chat_template, test_the_model_reads_the_history, test_another_chat_template_is_followed, test_the_reply_is_the_new_tokens_as_text, test_the_reply_has_no_special_tokens, test_a_new_history_comes_back, test_the_callers_history_is_unchanged, test_nothing_is_kept_between_calls, test_temperature_0_takes_the_likeliest_token, test_above_0_the_temperature_draws, test_at_most_max_new_tokens | says: has no attribute 'chat'
def chat(
    model,
    tokenizer,
    text,
    history=None,
    *,
    system="You are a helpful assistant.",
    max_new_tokens=256,
    temperature=0.0,
):
    if not text or temperature < 0:
        raise ValueError("bad arguments")
    return model.chat(tokenizer, text, history=history, system=system)
