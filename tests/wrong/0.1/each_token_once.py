# caught by: test_counts_chinese_and_repeated_tokens, test_counts_what_the_tokenizer_makes | says: the result is not the number of tokens in this text
def count_tokens(tokenizer, text):
    return len(set(tokenizer(text)["input_ids"]))
