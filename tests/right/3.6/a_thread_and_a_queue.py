# a right answer: a thread for each answer, which runs its own loop and fills an asyncio.Queue
import asyncio
import threading

import torch
from safe_prompt import encode_chat
from sequence import Piece, Sequence


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        ids = encode_chat(self.tokenizer, messages)
        room = self.model.config.max_position_embeddings - len(ids)
        if room <= 0:
            window = self.model.config.max_position_embeddings
            raise ValueError(f"{len(ids)} tokens do not fit into a window of {window}")
        ends = self.model.generation_config.eos_token_id
        sequence = Sequence(
            self.tokenizer,
            ids,
            limit=min(max_tokens or room, room),
            eos_token_ids=[ends] if isinstance(ends, int) else ends,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue()
        left = threading.Event()

        def put(item):
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, item)
            except RuntimeError:
                left.set()

        def work():
            try:
                with torch.no_grad():
                    for piece in self.pieces(ids, sequence, left):
                        put(piece)
            except BaseException as error:
                put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                item = await pieces.get()
                if isinstance(item, Piece):
                    yield item
                    if item.finish_reason:
                        return
                else:
                    raise item
        finally:
            left.set()

    def pieces(self, ids, sequence, left):
        past, new = None, torch.tensor([ids])
        while not sequence.finished and not left.is_set():
            out = self.model(new, past_key_values=past, use_cache=True)
            past = out.past_key_values
            piece = sequence.take(out.logits[0, -1])
            new = torch.tensor([[sequence.token]])
            if piece.text or piece.finish_reason:
                yield piece
