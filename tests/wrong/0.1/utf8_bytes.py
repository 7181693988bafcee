# caught by: test_counts_what_the_tokenizer_makes, test_counts_chinese_and_repeated_tokens | says: not the number of tokens
def count_tokens(tokenizer, text):
    return len(text.encode("utf-8"))
