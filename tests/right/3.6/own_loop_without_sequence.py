# a right answer: everything by itself, without a Sequence; one step at a time in a thread of its own
import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from safe_prompt import encode_chat
from transformers import DynamicCache


@dataclass
class Part:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = None


def draw(logits, temperature, top_p, generator):
    if temperature == 0:
        return logits.argmax().item()
    chances = torch.softmax(logits.double() / temperature, -1)
    ordered, ids = torch.sort(chances, descending=True)
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return ids[torch.multinomial(ordered, 1, generator=generator)].item()


class ChatModel:
    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.thread = ThreadPoolExecutor(1)

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self.thread, encode_chat, self.tokenizer, messages)
        window = self.model.config.max_position_embeddings
        if len(prompt) >= window:
            raise ValueError(f"the prompt's {len(prompt)} tokens fill the window of {window}")
        most = window - len(prompt)
        most = most if max_tokens is None else min(most, max_tokens)
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends)
        generator = torch.Generator()
        if seed is None:
            seed = generator.seed()
        generator.manual_seed(seed)
        cache, feed, cut, held, reason, count = DynamicCache(), prompt, [], "", None, 0
        while reason is None:
            logits = await loop.run_in_executor(self.thread, self.step, feed, cache)
            token = draw(logits, temperature, top_p, generator)
            count += 1
            feed = [token]
            cut.append(token)
            if token in ends:
                cut.pop()
                reason = "stop"
            text = self.tokenizer.decode(cut, skip_special_tokens=True)
            if not text.endswith("\ufffd"):
                cut = []
            elif reason or count == most:
                text = text.rstrip("\ufffd")
            else:
                text = ""
            held += text
            found = [held.find(each) for each in stop if each in held]
            if found:
                held, reason = held[: min(found)], "stop"
            elif reason is None and count == most:
                reason = "length"
            keep = 0
            if reason is None:
                keep = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
            out, held = held[: len(held) - keep], held[len(held) - keep :]
            if out or reason:
                yield Part(out, len(prompt), count, reason)

    @torch.inference_mode()
    def step(self, ids, cache):
        return self.model(torch.tensor([ids]), past_key_values=cache).logits[0, -1]
