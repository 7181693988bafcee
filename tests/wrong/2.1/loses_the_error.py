# caught by: test_an_error_in_the_model_reaches_the_reader | says: the model's error is lost: its reader waits for ever
import asyncio
import threading

from transformers import AsyncTextIteratorStreamer, StoppingCriteria, StoppingCriteriaList


class StopOnEvent(StoppingCriteria):
    def __init__(self, event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return self.event.is_set()


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        streamer = AsyncTextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = threading.Event()
        arguments = dict(
            **inputs,
            streamer=streamer,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            stopping_criteria=StoppingCriteriaList([StopOnEvent(stop)]),
        )
        thread = threading.Thread(target=self.model.generate, kwargs=arguments, daemon=True)
        thread.start()
        try:
            pieces = []
            async for piece in streamer:
                piece = piece.rstrip("\ufffd")
                if stream and piece:
                    yield piece
                pieces.append(piece)
            if not stream:
                yield "".join(pieces)
        finally:
            stop.set()
