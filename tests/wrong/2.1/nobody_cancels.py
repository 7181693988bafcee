# caught by: test_a_reader_who_closes_stops_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: steps after its reader had left
import asyncio
import threading

from transformers import TextIteratorStreamer


class QueueStreamer(TextIteratorStreamer):
    def __init__(self, tokenizer, loop, queue):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.loop, self.queue = loop, queue

    def on_finalized_text(self, text, stream_end=False):
        text = text.replace("\ufffd", "")
        if text:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, text)
        if stream_end:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, None)


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    def _generate(self, prompt, streamer, max_new_tokens, temperature):
        try:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            sampling = {"do_sample": False, "temperature": None, "top_p": None}
            if temperature > 0:
                sampling = {"do_sample": True, "temperature": temperature}
            self.model.generate(
                **inputs, **sampling, streamer=streamer, max_new_tokens=max_new_tokens
            )
        except Exception as error:
            streamer.loop.call_soon_threadsafe(streamer.queue.put_nowait, error)

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        queue = asyncio.Queue()
        streamer = QueueStreamer(self.tokenizer, asyncio.get_running_loop(), queue)
        threading.Thread(
            target=self._generate,
            args=(prompt, streamer, max_new_tokens, temperature),
            daemon=True,
        ).start()
        text = ""
        while True:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                break
            if stream:
                yield item
            text += item
        if not stream:
            yield text
