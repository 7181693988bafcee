# a right answer: the tokenizer counts
def count_tokens(tokenizer, text):
    return sum(tokenizer(text, return_length=True, add_special_tokens=False)["length"]) if text else 0
