# a right answer: one thread takes whole answers from a queue, one after another, and uses no cache
import asyncio
import queue
import threading

import torch


class Job:
    def __init__(self, prompt, max_new_tokens, temperature):
        self.prompt, self.max_new_tokens, self.temperature = prompt, max_new_tokens, temperature
        self.loop = asyncio.get_running_loop()
        self.pieces = asyncio.Queue()
        self.cancelled = False

    def send(self, kind, value=None):
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, (kind, value))


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.jobs = queue.Queue()
        self.thread = None

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, daemon=True)
            self.thread.start()
        job = Job(prompt, max_new_tokens, temperature)
        self.jobs.put(job)
        text = ""
        try:
            while True:
                kind, value = await job.pieces.get()
                if kind == "error":
                    raise value
                if kind == "end":
                    break
                if stream:
                    yield value
                else:
                    text += value
        finally:
            job.cancelled = True
        if not stream:
            yield text

    def work(self):
        while True:
            job = self.jobs.get()
            if job.cancelled:
                continue
            try:
                self.answer(job)
            except Exception as error:
                job.send("error", error)
            else:
                job.send("end")

    @torch.no_grad()
    def answer(self, job):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": job.prompt}], add_generation_prompt=True
        )["input_ids"]
        start = len(ids)
        sent = ""
        ends = self.model.generation_config.eos_token_id
        for _ in range(job.max_new_tokens):
            if job.cancelled:
                return
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            if job.temperature:
                next_id = int(torch.distributions.Categorical(logits=logits / job.temperature).sample())
            else:
                next_id = int(torch.argmax(logits))
            if next_id in ends:
                return
            ids.append(next_id)
            text = self.tokenizer.decode(ids[start:], skip_special_tokens=True)
            if not text.endswith("\ufffd") and text != sent:
                job.send("piece", text[len(sent) :])
                sent = text
