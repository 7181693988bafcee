# a right answer: TextIteratorStreamer in a pool of two threads, polled by the event loop
import asyncio
import copy
import queue
from concurrent.futures import ThreadPoolExecutor

from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer


def without_settings(model, tokenizer):
    ends, model = model.generation_config.eos_token_id, copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    return model


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = without_settings(model, tokenizer)
        self.tokenizer = tokenizer
        self.pool = ThreadPoolExecutor(2)

    def prompt_of(self, text):
        return self.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": text},
            ],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )

    async def _pieces(self, prompt, max_new_tokens, temperature):
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        state = {"stop": False}

        def work():
            if state["stop"]:
                return
            self.model.generate(
                **self.prompt_of(prompt),
                streamer=streamer,
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=float(temperature) or None,
                stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: state["stop"]]),
            )

        job = self.pool.submit(work)
        try:
            while True:
                try:
                    piece = streamer.text_queue.get_nowait()
                except queue.Empty:
                    if job.done():
                        if job.exception():
                            raise job.exception() from None
                        if streamer.text_queue.empty():
                            return
                    await asyncio.sleep(0.002)
                    continue
                if piece == streamer.stop_signal:
                    return
                piece = piece.rstrip("\ufffd")
                if piece:
                    yield piece
        finally:
            state["stop"] = True
            job.cancel()

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        pieces = self._pieces(prompt, max_new_tokens, temperature)
        try:
            if stream:
                async for piece in pieces:
                    yield piece
            else:
                yield "".join([piece async for piece in pieces])
        finally:
            await pieces.aclose()
