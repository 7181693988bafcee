# a right answer: model.generate of a copy that has none of the checkpoint's settings; a Sequence chooses in a LogitsProcessor, and a StoppingCriteria ends it
import asyncio
import copy
import threading

import torch
from safe_prompt import encode_chat
from sequence import Sequence
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria


class Take(LogitsProcessor):
    def __init__(self, sequence, put):
        self.sequence, self.put = sequence, put

    def __call__(self, input_ids, scores):
        piece = self.sequence.take(scores[0])
        if piece.text or piece.finish_reason:
            self.put(piece)
        forced = torch.full_like(scores, -float("inf"))
        forced[0, self.sequence.token] = 0
        return forced


class Ended(StoppingCriteria):
    def __init__(self, sequence):
        self.sequence, self.left = sequence, False

    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([self.sequence.finished or self.left])


class ChatModel:
    def __init__(self, model, tokenizer):
        ends = model.generation_config.eos_token_id
        self.ends = ends if isinstance(ends, list) else [ends]
        self.model, self.tokenizer = copy.copy(model), tokenizer
        # the weights are shared; generate would fill up what it is not given from the model's own
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.ends, pad_token_id=self.ends[0]
        )

    def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if len(ids) >= window:
            raise ValueError(f"prompt: {len(ids)} tokens, window: {window} tokens")
        limit = window - len(ids)
        if max_tokens is not None:
            limit = min(limit, max_tokens)
        return self._answer(ids, limit, temperature, top_p, seed, stop)

    async def _answer(self, ids, limit, temperature, top_p, seed, stop):
        sequence = Sequence(
            self.tokenizer,
            ids,
            limit=limit,
            eos_token_ids=self.ends,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        queue, loop = asyncio.Queue(), asyncio.get_running_loop()
        ended = Ended(sequence)

        def put(item):
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def run():
            try:
                prompt = torch.tensor([ids])
                self.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=limit,
                    logits_processor=[Take(sequence, put)],
                    stopping_criteria=[ended],
                )
            except Exception as error:
                put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    break
        finally:
            ended.left = True
