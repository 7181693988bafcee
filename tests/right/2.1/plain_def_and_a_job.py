# a right answer: generate is a plain def that makes a job; it is queued for the only thread when it is first read
import asyncio
import queue
import threading
from dataclasses import dataclass, field

import torch
from tokenizers.decoders import DecodeStream


@dataclass
class Job:
    prompt: str
    stream: bool
    limit: int
    temperature: float
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    out: asyncio.Queue = field(default_factory=asyncio.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    def send(self, kind, value=None):
        self.loop.call_soon_threadsafe(self.out.put_nowait, (kind, value))


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.jobs = model, tokenizer, queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            job = self.jobs.get()
            try:
                self.answer(job)
                job.send("end")
            except Exception as error:
                job.send("error", error)

    @torch.inference_mode()
    def answer(self, job):
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": job.prompt},
        ]
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"].to(self.model.device)
        decoder, cache = DecodeStream(skip_special_tokens=True), None
        for _ in range(job.limit):
            if job.left.is_set():
                return
            out = self.model(ids, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1]
            if job.temperature == 0:
                ids = logits.argmax(-1, keepdim=True)
            else:
                ids = torch.multinomial((logits / job.temperature).softmax(-1), 1)
            if ids.item() == self.tokenizer.eos_token_id:
                return
            if piece := decoder.step(self.tokenizer.backend_tokenizer, ids.item()):
                job.send("piece", piece)

    def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        return self.read(Job(prompt, stream, max_new_tokens, temperature))

    async def read(self, job):
        pieces = []
        try:
            self.jobs.put(job)
            while True:
                kind, value = await job.out.get()
                if kind == "error":
                    raise value
                if kind == "end":
                    break
                if job.stream:
                    yield value
                else:
                    pieces.append(value)
        finally:
            job.left.set()
        if not job.stream:
            yield "".join(pieces)
