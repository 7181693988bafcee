# caught by: test_answers_at_once_do_not_mix, test_64_streams_at_once_all_finish, test_one_leaver_stops_only_its_own, test_a_reader_who_leaves_the_queue_stops_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_closes_stops_the_model | says: answers at once mix
import asyncio
import threading

from transformers import TextStreamer


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def run(self, prompt, stop, max_new_tokens, temperature):
        handler = self

        class Streamer(TextStreamer):
            def on_finalized_text(self, text, stream_end=False):
                handler.put(text.rstrip("\ufffd"))

        try:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            self.model.generate(
                **inputs,
                streamer=Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                stopping_criteria=[lambda ids, scores, **kwargs: stop.is_set()],
            )
            self.put(None)
        except Exception as error:
            self.put(error)

    def put(self, item):
        self.loop.call_soon_threadsafe(self.queue.put_nowait, item)

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        self.loop = asyncio.get_running_loop()
        self.queue = asyncio.Queue()
        stop = threading.Event()
        threading.Thread(
            target=self.run, args=(prompt, stop, max_new_tokens, temperature), daemon=True
        ).start()
        text = ""
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                text += item
                if stream and item:
                    yield item
        finally:
            stop.set()
        if not stream:
            yield text
