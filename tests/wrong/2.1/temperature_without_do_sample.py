# caught by: test_a_temperature_above_0_samples_at_it | says: the temperature is not used
import asyncio
import threading

from transformers import TextStreamer


class Pieces(TextStreamer):
    def __init__(self, tokenizer, send):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.send = send

    def on_finalized_text(self, text, stream_end=False):
        self.send(text.replace("\ufffd", ""))


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.model.generation_config.do_sample = False
        self.model.generation_config.top_p = None

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        stopped = threading.Event()

        def send(item):
            loop.call_soon_threadsafe(queue.put_nowait, item)

        def run():
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            try:
                self.model.generate(
                    **inputs,
                    temperature=temperature or 1.0,
                    max_new_tokens=max_new_tokens,
                    streamer=Pieces(self.tokenizer, send),
                    stopping_criteria=[lambda ids, scores, **kwargs: stopped.is_set()],
                )
                send(None)
            except Exception as error:
                send(error)

        threading.Thread(target=run, daemon=True).start()
        text = ""
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if not stream:
                    text += item
                elif item:
                    yield item
        finally:
            stopped.set()
        if not stream:
            yield text
