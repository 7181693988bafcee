# caught by: test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: steps after its reader had left
import asyncio
import threading

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        pieces = asyncio.Queue()
        stop = threading.Event()

        def put(piece):
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work():
            try:
                for piece in self._tokens(prompt, max_new_tokens, temperature):
                    if stop.is_set():
                        return
                    put(piece)
                put(None)
            except Exception as error:
                put(error)

        threading.Thread(target=work, daemon=True).start()
        text = ""
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            text += piece
            if stream and piece:
                try:
                    yield piece
                except GeneratorExit:  # the client has left
                    stop.set()
                    raise
        if not stream:
            yield text

    @torch.no_grad()
    def _tokens(self, prompt, max_new_tokens, temperature):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        past = None
        decode = DecodeStream(skip_special_tokens=True)
        for _ in range(max_new_tokens):
            out = self.model(ids, past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits = out.logits[:, -1]
            if temperature > 0:
                ids = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            else:
                ids = logits.argmax(-1, keepdim=True)
            if ids.item() in self.model.generation_config.eos_token_id:
                return
            yield decode.step(self.tokenizer._tokenizer, ids.item()) or ""
