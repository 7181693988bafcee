# caught by: test_text_comes_out_while_the_model_is_held | says: nothing streams: all pieces came after the model had finished
import asyncio
import threading

from transformers import StoppingCriteriaList, TextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        left = threading.Event()
        finished = asyncio.Event()
        loop = asyncio.get_running_loop()
        errors = []

        def work():
            try:
                self.model.generate(
                    **inputs,
                    streamer=streamer,
                    max_new_tokens=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature or None,
                    stopping_criteria=StoppingCriteriaList([lambda *_, **__: left.is_set()]),
                )
            except Exception as error:
                errors.append(error)
                streamer.end()
            loop.call_soon_threadsafe(finished.set)

        threading.Thread(target=work, daemon=True).start()
        try:
            await finished.wait()
        finally:
            left.set()
        if errors:
            raise errors[0]
        pieces = [piece.rstrip("\ufffd") for piece in streamer]
        if not stream:
            yield "".join(pieces)
            return
        for piece in pieces:
            if piece:
                yield piece
