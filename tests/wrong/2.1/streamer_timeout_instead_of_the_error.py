# caught by: test_an_error_in_the_model_reaches_the_reader | says: another error than the model's reaches the reader
import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

from transformers import StoppingCriteriaList, TextIteratorStreamer

END = object()


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        streamer = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=1.0
        )
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        stop = Event()
        Thread(
            target=self.model.generate,
            kwargs={
                **inputs,
                "streamer": streamer,
                "max_new_tokens": max_new_tokens,
                "do_sample": temperature > 0,
                "temperature": temperature or None,
                "stopping_criteria": StoppingCriteriaList([lambda i, s, **k: stop.is_set()]),
            },
            daemon=True,
        ).start()
        reader = ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()
        text = ""
        try:
            while (piece := await loop.run_in_executor(reader, next, streamer, END)) is not END:
                piece = piece.replace("\ufffd", "")
                text += piece
                if stream and piece:
                    yield piece
        finally:
            stop.set()
            reader.shutdown(wait=False)
        if not stream:
            yield text
