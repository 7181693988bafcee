# a right answer: a class with __anext__; one thread takes whole answers from a queue, and uses no cache
import asyncio
import queue
import threading
from types import SimpleNamespace

import torch
from safe_prompt import encode_chat
from sequence import Sequence


class Chat:
    def __init__(self, jobs, ids, sequence):
        self.jobs, self.ids, self.sequence = jobs, ids, sequence
        self.pieces = None
        self.over = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.over:
            raise StopAsyncIteration
        if self.pieces is None:
            self.loop, self.pieces = asyncio.get_running_loop(), asyncio.Queue()
            self.jobs.put(self)
        try:
            piece = await self.pieces.get()
        except BaseException:
            self.over = True
            raise
        if isinstance(piece, Exception):
            self.over = True
            raise piece
        self.over = piece.finish_reason is not None
        return piece

    async def aclose(self):
        self.over = True

    def send(self, piece):
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:
            self.over = True


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.jobs = queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if len(ids) >= window:
            raise ValueError(f"window {window}, prompt {len(ids)}")
        ends = self.model.generation_config.eos_token_id
        sequence = Sequence(
            self.tokenizer,
            ids,
            limit=min(n for n in (max_tokens, window - len(ids)) if n is not None),
            eos_token_ids=ends if isinstance(ends, list) else [ends],
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        return Chat(self.jobs, ids, sequence)

    def work(self):
        while True:
            chat = self.jobs.get()
            try:
                self.answer(chat)
            except Exception as error:
                chat.send(error)

    @torch.no_grad()
    def answer(self, chat):
        ids, sequence, waiting = list(chat.ids), chat.sequence, ""
        while not chat.over and not sequence.finished:
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits
            piece = sequence.take(logits[0, -1].clone())
            ids.append(sequence.token)
            waiting += piece.text
            if waiting or sequence.finished:
                chat.send(
                    SimpleNamespace(
                        text=waiting,
                        prompt_tokens=piece.prompt_tokens,
                        completion_tokens=piece.completion_tokens,
                        finish_reason=piece.finish_reason,
                    )
                )
                waiting = ""
