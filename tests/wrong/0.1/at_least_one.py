# caught by: test_an_empty_text_has_no_tokens | says: the result for empty text is not 0
def count_tokens(tokenizer, text):
    return max(1, len(tokenizer.tokenize(text)))
