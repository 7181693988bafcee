# a right answer: calls the decoder and lm_head by themselves, in threads of a pool of its own, four answers at once
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from safe_prompt import encode_chat
from sequence import Piece, Sequence


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.pool = ThreadPoolExecutor(4)
        self.turn = None

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if len(ids) >= window:
            raise ValueError(f"the prompt has {len(ids)} ids, more than fit before the end of {window}")
        self.turn = self.turn or asyncio.Semaphore(4)
        ends = self.model.generation_config.eos_token_id
        options = dict(temperature=temperature, top_p=top_p, seed=seed, stop=stop)
        sequence = Sequence(
            self.tokenizer,
            ids,
            limit=min(max_tokens or window, window - len(ids)),
            eos_token_ids=ends if isinstance(ends, list) else [ends],
            **options,
        )
        loop = asyncio.get_running_loop()
        text, past = "", None
        async with self.turn:
            while True:
                piece, past = await loop.run_in_executor(self.pool, self.step, ids, past, sequence)
                ids = [sequence.token]
                text += piece.text
                if text or sequence.finished:
                    yield Piece(text, piece.prompt_tokens, piece.completion_tokens, piece.finish_reason)
                    text = ""
                if sequence.finished:
                    return

    def step(self, ids, past, sequence):
        with torch.inference_mode():
            out = self.model.model(input_ids=torch.tensor([ids]), past_key_values=past, use_cache=True)
            logits = self.model.lm_head(out.last_hidden_state[:, -1])
        return sequence.take(logits[0].float()), out.past_key_values
