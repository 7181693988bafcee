# a right answer: transformers' own async streamer; an error ends it
import asyncio
import copy
import threading

from transformers import AsyncTextIteratorStreamer, GenerationConfig, StoppingCriteriaList


def without_settings(model, tokenizer):
    ends, model = model.generation_config.eos_token_id, copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    return model


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = without_settings(model, tokenizer)
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        streamer = AsyncTextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = threading.Event()
        error = None

        def run():
            nonlocal error
            try:
                inputs = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                self.model.generate(
                    **inputs,
                    streamer=streamer,
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=float(temperature) or None,
                    stopping_criteria=StoppingCriteriaList([lambda *args, **kw: stop.is_set()]),
                )
            except Exception as caught:
                error = caught
                streamer.end()

        threading.Thread(target=run, daemon=True).start()
        try:
            text = ""
            async for piece in streamer:
                piece = piece.replace("\ufffd", "")
                text += piece
                if piece and stream:
                    yield piece
            if error:
                raise error
            if not stream:
                yield text
        finally:
            stop.set()
