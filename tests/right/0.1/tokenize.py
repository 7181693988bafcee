# a right answer: counts the tokens' texts
def count_tokens(tokenizer, text):
    return len(tokenizer.tokenize(text))
