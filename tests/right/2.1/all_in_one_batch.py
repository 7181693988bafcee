# a right answer: one thread steps all answers at once, in a padded batch
import asyncio
import threading

import torch
from tokenizers.decoders import DecodeStream


class Row:
    def __init__(self, ids, most, temperature):
        self.ids, self.most, self.temperature = ids, most, temperature
        self.new = 0
        self.left = False
        self.loop = asyncio.get_running_loop()
        self.queue = asyncio.Queue()
        self.text = DecodeStream(skip_special_tokens=True)

    def put(self, item):
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:
            self.left = True


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.rows = []
        self.changed = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        row = Row(ids, max_new_tokens, temperature)
        with self.changed:
            self.rows.append(row)
            self.changed.notify()
        pieces = []
        try:
            while True:
                item = await row.queue.get()
                if item is None:
                    break
                if isinstance(item, Exception):
                    raise item
                if stream:
                    yield item
                pieces.append(item)
        finally:
            row.left = True
        if not stream:
            yield "".join(pieces)

    def run(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.rows)
                rows = self.rows = [row for row in self.rows if not row.left]
                rows = list(rows)
            if not rows:
                continue
            try:
                self.step(rows)
            except Exception as error:
                for row in rows:
                    row.put(error)
                    row.left = True

    @torch.inference_mode()
    def step(self, rows):
        longest = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, longest - len(row.ids) :] = torch.tensor(row.ids)
            mask[number, longest - len(row.ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for row, scores in zip(rows, logits[:, -1], strict=True):
            if row.temperature > 0:
                token = torch.multinomial((scores / row.temperature).softmax(-1), 1).item()
            else:
                token = scores.argmax().item()
            ended = token in self.model.generation_config.eos_token_id
            if not ended:
                row.ids.append(token)
                row.new += 1
                piece = row.text.step(self.tokenizer.backend_tokenizer, token)
                if piece:
                    row.put(piece)
            if ended or row.new == row.most:
                row.put(None)
                row.left = True
