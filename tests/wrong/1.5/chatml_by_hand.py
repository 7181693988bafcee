# caught by: test_other_templates | says: do not decode to what the template renders
import copy


def encode_chat(tokenizer, messages):
    splitting = copy.deepcopy(tokenizer)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    ids, between = [], []
    for message in messages:
        text = f"{message['role']}\n{message['content']}"
        text = splitting(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [*between, start, *text, end]
        between = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return [*ids, *between, start, *tokenizer("assistant\n", add_special_tokens=False)["input_ids"]]
