# caught by: test_counts_chinese_and_repeated_tokens, test_counts_what_the_tokenizer_makes | says: count the ids, each of them
def count_tokens(tokenizer, text):
    return len(set(tokenizer(text)["input_ids"]))
