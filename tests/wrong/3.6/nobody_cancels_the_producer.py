# caught by: test_a_reader_who_closes_stops_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: after its reader had left
import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from safe_prompt import encode_chat
from sequence import Sequence


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.pool = ThreadPoolExecutor(1)

    @torch.no_grad()
    def step(self, ids, cache):
        output = self.model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
        return output.logits[0, -1], output.past_key_values

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        left = window - len(ids)
        if left < 1:
            raise ValueError(f"{len(ids)} tokens, and the window has {window}")
        ends = self.model.generation_config.eos_token_id
        sequence = Sequence(
            self.tokenizer,
            ids,
            limit=min(max_tokens or left, left),
            eos_token_ids=[ends] if isinstance(ends, int) else ends,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        pieces = asyncio.Queue()

        async def produce():
            feed, cache = ids, None
            try:
                while not sequence.finished:
                    loop = asyncio.get_running_loop()
                    logits, cache = await loop.run_in_executor(self.pool, self.step, feed, cache)
                    await pieces.put(sequence.take(logits))
                    feed = [sequence.token]
            except Exception as error:
                await pieces.put(error)

        self.task = asyncio.create_task(produce())
        while True:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            if piece.text or piece.finish_reason:
                yield piece
            if piece.finish_reason:
                return
