# caught by: test_no_character_is_broken, test_a_cut_character_is_left_out | says: broken characters
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.executor = ThreadPoolExecutor(max_workers=1)

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        ids = self.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": prompt},
            ],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).input_ids
        cache, text = None, ""
        for _ in range(max_new_tokens):
            token, cache = await loop.run_in_executor(
                self.executor, self.next_token, ids, cache, temperature
            )
            if token in self.model.generation_config.eos_token_id:
                break
            ids = torch.tensor([[token]])
            piece = self.tokenizer.decode([token], skip_special_tokens=True)
            text += piece
            if stream and piece:
                yield piece
        if not stream:
            yield text

    def next_token(self, ids, cache, temperature):
        with torch.no_grad():
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = out.logits[0, -1]
        if temperature > 0:
            token = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1)
        else:
            token = torch.argmax(logits)
        return token.item(), out.past_key_values
