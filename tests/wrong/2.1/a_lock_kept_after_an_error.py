# caught by: test_after_an_error_the_next_answer_works | says: after an error in the model, the next answer never arrives
import asyncio

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.lock = asyncio.Lock()

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        await self.lock.acquire()
        decoder, cache, pieces = DecodeStream(skip_special_tokens=True), None, []
        try:
            for _ in range(max_new_tokens):
                ids, cache = await asyncio.to_thread(self.step, ids, cache, temperature)
                if ids.item() in self.model.generation_config.eos_token_id:
                    break
                piece = decoder.step(self.tokenizer.backend_tokenizer, ids.item())
                if piece:
                    pieces.append(piece)
                    if stream:
                        yield piece
        except (asyncio.CancelledError, GeneratorExit):
            self.lock.release()
            raise
        self.lock.release()
        if not stream:
            yield "".join(pieces)

    @torch.inference_mode()
    def step(self, ids, cache, temperature):
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        logits = out.logits[:, -1]
        if temperature > 0:
            ids = torch.multinomial((logits / temperature).softmax(-1), 1)
        else:
            ids = logits.argmax(-1, keepdim=True)
        return ids, out.past_key_values
