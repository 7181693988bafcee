# a right answer: only the model's step is in a thread, under a lock; the Sequence is asked in the event loop
import asyncio

import torch
from safe_prompt import encode_chat
from sequence import Sequence


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.lock = asyncio.Lock()

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        prompt = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if (left := window - len(prompt)) < 1:
            raise ValueError(f"no room: {len(prompt)} of {window}")
        ends = self.model.generation_config.eos_token_id
        sequence = Sequence(
            self.tokenizer,
            prompt,
            limit=left if max_tokens is None or max_tokens > left else max_tokens,
            eos_token_ids=[ends] if type(ends) is int else list(ends),
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=list(stop),
        )
        feed, cache = torch.tensor([prompt]), None
        while not sequence.finished:
            async with self.lock:
                logits, cache = await asyncio.to_thread(self.step, feed, cache)
            piece = sequence.take(logits)
            feed = torch.tensor([[sequence.token]])
            if sequence.finished or piece.text != "":
                yield piece

    @torch.inference_mode()
    def step(self, feed, cache):
        output = self.model(input_ids=feed, past_key_values=cache, use_cache=True)
        return output.logits[0, -1, :], output.past_key_values
