# a right answer: mends the plain ids at the typed tokens; no generation prompt
from copy import deepcopy

class Encoder:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.controls = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}

    def template(self, messages):
        return self.tokenizer.apply_chat_template(messages, tokenize=False)

    def typed(self, messages):
        """For each control token of the rendered text: was it typed?"""
        names = [f"m{i}qz" for i in range(len(messages))]
        named = [{**m, "content": name} for m, name in zip(messages, names)]
        frame = self.template(named)
        order, at = [], 0
        for name, message in zip(names, messages):
            start = frame.find(name, at)
            order += [False] * self.count(frame[at:start])
            order += [True] * self.count(message["content"])
            at = start + len(name)
        return order + [False] * self.count(frame[at:])

    def count(self, text):
        return sum(id in self.controls.values() for id in self.plain(text))

    def plain(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def ids(self, messages):
        split = deepcopy(self.tokenizer)
        split._tokenizer.encode_special_tokens = True
        typed = iter(self.typed(messages))
        found = []
        for id in self.plain(self.template(messages)):
            if id in self.controls.values() and next(typed):
                text = self.tokenizer.convert_ids_to_tokens(id)
                found += split._tokenizer.encode(text, add_special_tokens=False).ids
            else:
                found.append(id)
        return found


def encode_chat(tokenizer, messages):
    return Encoder(tokenizer).ids(messages)
