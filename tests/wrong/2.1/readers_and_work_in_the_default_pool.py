# caught by: test_64_streams_at_once_all_finish | says: 64 concurrent streams hang: the readers fill a thread pool
import asyncio
import copy
import threading

from transformers import GenerationConfig, StoppingCriteriaList, TextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = copy.copy(model)  # without the checkpoint's settings
        self.model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, top_k=0)
        self.tokenizer = tokenizer

    def _work(self, prompt, streamer, stop, errors, max_new_tokens, temperature):
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
                stopping_criteria=StoppingCriteriaList([lambda *a, **k: stop.is_set()]),
            )
        except Exception as error:
            errors.append(error)
            streamer.end()

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, errors = threading.Event(), []
        task = asyncio.create_task(
            asyncio.to_thread(
                self._work, prompt, streamer, stop, errors, max_new_tokens, temperature
            )
        )
        text = ""
        try:
            while (piece := await asyncio.to_thread(next, streamer, None)) is not None:
                piece = piece.rstrip("\ufffd")
                text += piece
                if stream and piece:
                    yield piece
        finally:
            stop.set()
        await task
        if errors:
            raise errors[0]
        if not stream:
            yield text
