# a right answer: a loop over the model in a thread; DecodeStream makes the pieces
import asyncio
import threading

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        loop = asyncio.get_running_loop()
        queue = asyncio.Queue()
        stop = threading.Event()

        def run():
            try:
                for piece in self.pieces(prompt, stop, max_new_tokens, temperature):
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:
                loop.call_soon_threadsafe(queue.put_nowait, error)

        threading.Thread(target=run, daemon=True).start()
        text = []
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if stream:
                    yield item
                else:
                    text.append(item)
        finally:
            stop.set()
        if not stream:
            yield "".join(text)

    @torch.inference_mode()
    def pieces(self, prompt, stop, max_new_tokens, temperature):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        decoder, cache = DecodeStream(skip_special_tokens=True), None
        for _ in range(max_new_tokens):
            if stop.is_set():
                return
            out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1]
            if temperature > 0:
                ids = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                ids = logits.argmax(-1, keepdim=True)
            if ids.item() in self.model.generation_config.eos_token_id:
                return
            piece = decoder.step(self.tokenizer.backend_tokenizer, ids.item())
            if piece:
                yield piece
