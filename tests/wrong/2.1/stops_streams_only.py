# caught by: test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: steps after its reader had left
import asyncio
import threading

from transformers import AsyncTextIteratorStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def _inputs(self, prompt):
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        options = {
            "max_new_tokens": max_new_tokens,
            "do_sample": temperature > 0,
            "temperature": temperature or None,
        }
        if stream:
            async for piece in self._stream(prompt, options):
                yield piece
        else:
            yield await asyncio.to_thread(self._whole, prompt, options)

    def _whole(self, prompt, options):
        inputs = self._inputs(prompt)
        ids = self.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        return self.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")

    async def _stream(self, prompt, options):
        streamer = AsyncTextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stop = threading.Event()
        errors = []

        def work():
            try:
                self.model.generate(
                    **self._inputs(prompt),
                    **options,
                    streamer=streamer,
                    stopping_criteria=[lambda ids, scores, **kwargs: stop.is_set()],
                )
            except Exception as error:
                errors.append(error)
                streamer.end()

        threading.Thread(target=work, daemon=True).start()
        try:
            async for piece in streamer:
                piece = piece.rstrip("\ufffd")
                if piece:
                    yield piece
        finally:
            stop.set()
        if errors:
            raise errors[0]
