# a right answer: one thread steps all answers at once, in a padded batch
import asyncio
import threading

import torch
from safe_prompt import encode_chat
from sequence import Sequence


class Row:
    def __init__(self, ids, sequence):
        self.ids, self.sequence = ids, sequence
        self.left = False
        self.loop = asyncio.get_running_loop()
        self.queue = asyncio.Queue()

    def put(self, item):
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:
            self.left = True


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.rows = []
        self.changed = threading.Condition()
        threading.Thread(target=self.run, daemon=True).start()

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if len(ids) >= window:
            raise ValueError(f"{len(ids)} >= {window}: the window is full")
        limit = min(window - len(ids), window if max_tokens is None else max_tokens)
        ends = self.model.generation_config.eos_token_id
        options = {"temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop}
        options["eos_token_ids"] = ends if isinstance(ends, (list, tuple)) else [ends]
        row = Row(list(ids), Sequence(self.tokenizer, ids, limit=limit, **options))
        with self.changed:
            self.rows.append(row)
            self.changed.notify()
        try:
            reason = None
            while reason is None:
                item = await row.queue.get()
                if isinstance(item, Exception):
                    raise item
                reason = item.finish_reason
                yield item
        finally:
            row.left = True

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
                    row.left = True
                    row.put(error)

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
            piece = row.sequence.take(scores)
            row.ids.append(row.sequence.token)
            row.left = row.left or row.sequence.finished
            if piece.text or piece.finish_reason:
                row.put(piece)
