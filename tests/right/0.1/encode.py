# a right answer: encode, and a loop
def count_tokens(tokenizer, text):
    count = 0
    for _ in tokenizer.encode(text, add_special_tokens=False):
        count += 1
    return count
