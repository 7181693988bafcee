# a right answer: a thread and a streamer of its own for each answer, StoppingCriteria, an asyncio.Queue
import asyncio
import copy
import threading

from transformers import GenerationConfig, StoppingCriteria
from transformers.generation.streamers import TextStreamer


class ToQueue(TextStreamer):
    def __init__(self, tokenizer, put):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.put_piece = put

    def on_finalized_text(self, text, stream_end=False):
        if stream_end:
            text = text.rstrip("\ufffd")
        if text:
            self.put_piece(text)


class Stop(StoppingCriteria):
    def __init__(self, event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return self.event.is_set()


def without_settings(model, tokenizer):
    ends, model = model.generation_config.eos_token_id, copy.copy(model)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, top_k=0)
    return model


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = without_settings(model, tokenizer)
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue()
        stop = threading.Event()

        def put(item):
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, item)
            except RuntimeError:
                stop.set()  # the loop is closed: nobody listens any more

        def run():
            try:
                enc = self.tokenizer.apply_chat_template(
                    [
                        {"role": "system", "content": "You are a helpful assistant."},
                        {"role": "user", "content": prompt},
                    ],
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                if temperature > 0:
                    sampling = {"do_sample": True, "temperature": float(temperature), "top_p": 1.0, "top_k": 0}
                else:
                    sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
                self.model.generate(
                    **enc,
                    **sampling,
                    max_new_tokens=max_new_tokens,
                    streamer=ToQueue(self.tokenizer, put),
                    stopping_criteria=[Stop(stop)],
                )
                put(None)
            except BaseException as error:
                put(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            whole = []
            while (item := await pieces.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if stream:
                    yield item
                else:
                    whole.append(item)
            if not stream:
                yield "".join(whole)
        finally:
            stop.set()
