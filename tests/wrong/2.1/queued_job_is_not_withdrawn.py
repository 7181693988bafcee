# caught by: test_a_reader_who_leaves_the_queue_stops_the_model | says: steps after its reader had left
import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

from transformers import GenerationConfig, StoppingCriteria, TextStreamer


class ToReader(TextStreamer, StoppingCriteria):
    """Sends the text to its reader, and stops when told to."""

    def __init__(self, tokenizer, send):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.send = send
        self.stop = False

    def on_finalized_text(self, text, stream_end=False):
        text = text.replace("\ufffd", "")
        if text:
            self.send(text)

    def __call__(self, input_ids, scores, **kwargs):
        return self.stop


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = copy.copy(model)  # without the checkpoint's settings
        self.model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, top_k=0)
        self.tokenizer = tokenizer
        self.one_at_a_time = ThreadPoolExecutor(max_workers=1)
        self.running = {}

    def answer(self, key, send, prompt, max_new_tokens, temperature):
        self.running[key] = reader = ToReader(self.tokenizer, send)
        try:
            inputs = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            self.model.generate(
                **inputs,
                streamer=reader,
                stopping_criteria=[reader],
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=float(temperature) or None,
            )
            send(None)
        except Exception as error:
            send(error)
        finally:
            del self.running[key]

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        key = object()

        def send(item):
            loop.call_soon_threadsafe(queue.put_nowait, item)

        loop.run_in_executor(
            self.one_at_a_time, self.answer, key, send, prompt, max_new_tokens, temperature
        )
        text = ""
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                text += item
                if stream:
                    yield item
        finally:
            if key in self.running:
                self.running[key].stop = True
        if not stream:
            yield text
