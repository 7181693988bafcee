# caught by: test_text_comes_out_while_the_model_is_held, test_a_cancelled_reader_stops_the_model, test_a_reader_who_leaves_the_queue_stops_the_model | says: nothing streams
import asyncio
import copy

from transformers import GenerationConfig


class ModelHandler:
    def __init__(self, model, tokenizer):
        self.model = copy.copy(model)  # without the checkpoint's settings
        self.model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id, top_k=0)
        self.tokenizer = tokenizer

    def answer(self, prompt, max_new_tokens, temperature):
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": prompt},
        ]
        enc = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        out = self.model.generate(
            **enc,
            max_new_tokens=max_new_tokens,
            do_sample=temperature > 0,
            temperature=float(temperature) or None,
        )
        new = out[0, enc["input_ids"].shape[1] :]
        return self.tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        text = await asyncio.to_thread(self.answer, prompt, max_new_tokens, temperature)
        if not stream:
            yield text
            return
        for character in text:
            yield character
            await asyncio.sleep(0.001)
