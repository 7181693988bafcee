# a right answer: asks for a tensor and looks at its shape
def count_tokens(tokenizer, text):
    if not text:
        return 0
    return tokenizer(text, return_tensors="pt")["input_ids"].shape[1]
