# caught by: test_the_event_loop_never_waits_for_the_model, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model, test_leaving_does_not_wait_for_the_model, test_one_leaver_stops_only_its_own, test_answers_at_once_do_not_mix, test_64_streams_at_once_all_finish | says: a blocking call inside async def
import asyncio

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = model
        self.tokenizer = tokenizer

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )["input_ids"]
        cache = None
        decoder = DecodeStream(skip_special_tokens=True)
        pieces = []
        for _ in range(max_new_tokens):
            with torch.no_grad():
                out = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = out.logits[:, -1, :]
            if temperature > 0:
                ids = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1)
            else:
                ids = torch.argmax(logits, dim=-1, keepdim=True)
            if ids.item() in self.model.generation_config.eos_token_id:
                break
            piece = decoder.step(self.tokenizer.backend_tokenizer, ids.item())
            if piece:
                pieces.append(piece)
                if stream:
                    yield piece
            await asyncio.sleep(0)  # let the others have their turn
        if not stream:
            yield "".join(pieces)
