# a right answer: asyncio.to_thread for each single step, decoding by hand, no thread of its own
import asyncio

import torch
from transformers import DynamicCache

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.end = model.generation_config.eos_token_id
        if isinstance(self.end, int):
            self.end = [self.end]

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        messages = [SYSTEM, {"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        cache = DynamicCache()
        open_ids, whole = [], ""
        for _ in range(max_new_tokens):
            token = await asyncio.to_thread(self.step, ids, cache, temperature)
            if token in self.end:
                break
            ids = torch.tensor([[token]])
            open_ids.append(token)
            piece = self.tokenizer.decode(open_ids, skip_special_tokens=True)
            if piece.endswith("\ufffd"):
                continue
            open_ids = []
            whole += piece
            if stream and piece:
                yield piece
        if not stream:
            yield whole

    def step(self, ids, cache, temperature):
        with torch.inference_mode():
            logits = self.model.forward(ids, past_key_values=cache, use_cache=True).logits[0, -1, :]
        if temperature == 0:
            return logits.argmax().item()
        return torch.multinomial(torch.softmax(logits / temperature, -1), 1).item()
