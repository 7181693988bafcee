# a right answer: a first pass in __init__; the prompt goes to the model ten tokens at a time
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from tokenizers.decoders import DecodeStream
from transformers import DynamicCache


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.thread = ThreadPoolExecutor(1)
        self.step(torch.tensor([[0]]), None, 0)

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        pieces = []
        async for piece in self.pieces(prompt, max_new_tokens, temperature):
            if stream:
                yield piece
            else:
                pieces.append(piece)
        if not stream:
            yield "".join(pieces)

    async def pieces(self, prompt, max_new_tokens, temperature):
        loop = asyncio.get_running_loop()
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        cache = DynamicCache()
        decoder = DecodeStream(skip_special_tokens=True)
        for _ in range(max_new_tokens):
            token = await loop.run_in_executor(self.thread, self.step, ids, cache, temperature)
            if token in self.model.generation_config.eos_token_id:
                return
            ids = torch.tensor([[token]])
            if piece := decoder.step(self.tokenizer.backend_tokenizer, token):
                yield piece

    @torch.inference_mode()
    def step(self, ids, cache, temperature):
        for part in ids.split(10, dim=1):
            out = self.model(input_ids=part, past_key_values=cache, use_cache=True)
        return self.choose(out.logits[0, -1], temperature)

    def choose(self, logits, temperature):
        if temperature == 0:
            return logits.argmax().item()
        return torch.multinomial((logits / temperature).softmax(-1), 1).item()
