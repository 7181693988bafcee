# caught by: test_max_new_tokens_counts_new_tokens, test_a_cut_character_is_left_out, test_temperature_0_is_greedy, test_a_temperature_above_0_samples_at_it | says: it counts new ones only
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
                    max_length=max_new_tokens,
                    do_sample=temperature > 0,
                    temperature=temperature or None,
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
