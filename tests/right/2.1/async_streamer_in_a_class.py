# a right answer: AsyncTextIteratorStreamer, behind a class with __anext__ and aclose
import asyncio
import copy
import threading

import torch
from transformers import AsyncTextIteratorStreamer, GenerationConfig, StoppingCriteria, StoppingCriteriaList


class Left(StoppingCriteria):
    def __init__(self):
        self.left = False

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.left, dtype=torch.bool)


class Answer:
    def __init__(self, handler, prompt, stream, options):
        self.handler, self.prompt, self.stream, self.options = handler, prompt, stream, options
        self.leaving = Left()
        self.streamer = None
        self.over = False
        self.error = None

    def __aiter__(self):
        return self

    def start(self):
        self.streamer = AsyncTextIteratorStreamer(
            self.handler.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        tokenizer, model = self.handler.tokenizer, self.handler.model
        try:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": self.prompt}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=False,
            )
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                streamer=self.streamer,
                stopping_criteria=StoppingCriteriaList([self.leaving]),
                **self.options,
            )
        except Exception as error:
            self.error = error
            self.streamer.end()

    async def piece(self):
        try:
            piece = await self.streamer.__anext__()
        except StopAsyncIteration:
            if self.error:
                raise self.error from None
            raise
        return piece.replace("\ufffd", "")

    async def __anext__(self):
        if self.over:
            raise StopAsyncIteration
        try:
            if self.streamer is None:
                self.start()
            if not self.stream:
                whole = ""
                try:
                    while True:
                        whole += await self.piece()
                except StopAsyncIteration:
                    self.over = True
                    return whole
            while not (piece := await self.piece()):
                pass
            return piece
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self):
        self.over = self.leaving.left = True


def without_settings(model, tokenizer):
    ends, model = model.generation_config.eos_token_id, copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    return model


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = without_settings(model, tokenizer), tokenizer

    def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        options = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        options["temperature"] = float(temperature) if temperature > 0 else None
        return Answer(self, prompt, stream, options)
