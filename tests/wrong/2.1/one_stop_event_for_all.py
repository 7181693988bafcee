# caught by: test_one_leaver_stops_only_its_own, test_a_reader_who_closes_stops_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: when one reader leaves, another one's answer stops too
import asyncio
import threading

from transformers import AsyncTextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.stop = threading.Event()

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        self.stop.clear()
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
                    do_sample=temperature > 0,
                    temperature=temperature or None,
                    stopping_criteria=[lambda ids, scores, **kwargs: self.stop.is_set()],
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
        except (asyncio.CancelledError, GeneratorExit):
            self.stop.set()
            raise
        if errors:
            raise errors[0]
        if not stream:
            yield text
