# caught by: test_an_empty_text_has_no_tokens | says: an empty text has 0 tokens
def count_tokens(tokenizer, text):
    return max(1, len(tokenizer.tokenize(text)))
