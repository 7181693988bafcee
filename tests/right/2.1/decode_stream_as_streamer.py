# a right answer: generate in a thread, with a streamer that feeds a DecodeStream
import asyncio
import copy
import threading

from tokenizers.decoders import DecodeStream
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer


class Pieces(BaseStreamer):
    def __init__(self, tokenizer, put):
        self.tokenizer, self.put_piece = tokenizer.backend_tokenizer, put
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.prompt_is_past = False

    def put(self, ids):
        for id in ids.flatten().tolist() if self.prompt_is_past else ():
            if piece := self.decoder.step(self.tokenizer, id):
                self.put_piece(piece)
        self.prompt_is_past = True

    def end(self):
        self.put_piece(None)


def without_settings(model, tokenizer):
    ends, model = model.generation_config.eos_token_id, copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    return model


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = without_settings(model, tokenizer), tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def put(piece):
            loop.call_soon_threadsafe(queue.put_nowait, piece)

        def work():
            sampling = {"do_sample": False}
            if temperature > 0:
                sampling = {"do_sample": True, "top_p": 1.0, "temperature": float(temperature)}
            try:
                inputs = self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                self.model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=max_new_tokens,
                    streamer=Pieces(self.tokenizer, put),
                    stopping_criteria=[lambda ids, scores, **_: stop.is_set()],
                )
            except Exception as error:
                put(error)

        threading.Thread(target=work, daemon=True).start()
        text = ""
        try:
            while (piece := await queue.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                text += piece
                if stream:
                    yield piece
        finally:
            stop.set()
        if not stream:
            yield text
