# caught by: test_counts_what_the_tokenizer_makes, test_counts_chinese_and_repeated_tokens, test_an_empty_text_has_no_tokens | says: not the number of tokens
def count_tokens(tokenizer, text):
    print(len(tokenizer(text)["input_ids"]))
