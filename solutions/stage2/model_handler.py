"""Exercise 2.1: a model that streams its answers to many readers at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    """One model, and its answers piece by piece, for a server with an event loop.

    The event loop never waits for the model. Answers made at the same time do not mix. When 64 are
    being read at once, all of them reach their end.

    Example:
        >>> handler = ModelHandler(model, tokenizer)
        >>> async for piece in handler.generate("What is a token?", stream=True):
        ...     print(piece, end="", flush=True)
    """

    def __init__(self, model, tokenizer):
        """Args: model, tokenizer: as `load_chat_model` of exercise 1.1 returns them."""
        self._model, self._tokenizer = model, tokenizer
        # all steps of all answers stand in this one thread's queue, each behind the others'
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        """Answer one user message; to be read with `async for`.

        The model is given the tokenizer's own chat template of the system line "You are a helpful
        assistant." and the whole `prompt`, with the generation prompt. The answer ends at the
        tokenizer's own end token. Whether the model's other ones
        (`model.generation_config.eos_token_id`, a list) end it too is not graded.

        Args:
            prompt: what the user says.
            stream: True gives the answer in pieces, each as soon as it can be. While the model
                works on, all text up to the last space, newline or Chinese ideograph has come out
                (the spaces and newlines at its end may wait), and no piece is empty. False gives it
                as exactly one piece, which may be empty. Where a token ends within a character, its
                text may wait for that character's rest.
            max_new_tokens: the answer has at most this many tokens. A character that this limit
                cuts in two is left out, and so may be the other text of its token.
            temperature: an int or a float. 0 always takes the likeliest token. Above 0 each token is
                drawn from softmax(logits / temperature), afresh in each answer (tested
                from 0.002 to 50). The checkpoint's own settings change nothing: top_k, top_p, min_p,
                repetition_penalty, no_repeat_ngram_size, num_beams, min_length, min_new_tokens,
                suppress_tokens, bad_words_ids.

        Yields:
            Pieces of text. Joined they are the answer: nothing of the prompt, no special tokens,
            no broken characters. (No promise for tokens whose bytes form no character, which a
            high temperature may draw, nor for a U+FFFD that the model itself writes.)

        Raises:
            Whatever Exception the model raises, with its type and message, at once. The next answer
            works. (No promise for StopIteration and StopAsyncIteration, which Python's generators change.)

        The reader may leave at any time: by `aclose()` between two pieces, or by being cancelled
        while it waits, even while other answers have to be made first. Then the model stops within
        two steps after the one in progress, without anyone waiting for it, and no other answer is
        disturbed.
        """
        loop = asyncio.get_running_loop()
        steps = self._steps(prompt, max_new_tokens, temperature)
        pieces = []
        # one step at a time: a reader who leaves or does not read asks for no more of them
        while (piece := await loop.run_in_executor(self._model_thread, next, steps, None)) is not None:
            if piece and stream:
                yield piece
            else:
                pieces.append(piece)
        if not stream:
            yield "".join(pieces)

    @torch.inference_mode()
    def _steps(self, prompt, max_new_tokens, temperature):
        """Runs the model one step for each `next`; yields the text that the step completes."""
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": prompt},
        ]
        ids = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"].to(self._model.device)
        end = self._model.generation_config.eos_token_id
        end_ids = end if isinstance(end, list) else [end]
        text = DecodeStream(skip_special_tokens=True)
        cache = None
        for _ in range(max_new_tokens):
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            ids = _choose(output.logits[:, -1].float(), temperature)
            if ids.item() in end_ids:
                return
            # None as long as a character lacks some of its bytes
            yield text.step(self._tokenizer.backend_tokenizer, ids.item()) or ""


def _choose(logits, temperature):
    """The next token's id, of shape (1, 1), from logits of shape (1, vocabulary)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    # the largest is moved to 0, so that no temperature is too small to divide by
    logits = (logits - logits.max()) / temperature
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)
