# caught by: test_temperature_0_is_greedy | says: temperature 0 does not always take the likeliest token
import threading

from transformers import AsyncTextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        stop = threading.Event()
        streamer = AsyncTextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        errors = []

        def work():
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
                    **({"temperature": temperature} if temperature > 0 else {}),
                    stopping_criteria=[lambda ids, scores, **kwargs: stop.is_set()],
                )
            except Exception as error:
                errors.append(error)
                streamer.end()

        threading.Thread(target=work, daemon=True).start()
        text = ""
        try:
            async for piece in streamer:
                piece = piece.rstrip("\ufffd")
                text += piece
                if stream and piece:
                    yield piece
        finally:
            stop.set()
        if errors:
            raise errors[0]
        if not stream:
            yield text
