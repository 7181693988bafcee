"""Exercise 2.1: a model that streams its answers to many readers at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from tokenizers.decoders import DecodeStream


class ModelHandler:
    """One model that answers piece by piece, for a server with an event loop.

    The event loop never waits for the model. Answers generated at the same time do not get mixed up.
    When 64 are being read at once, all of them finish.

    Example:
        >>> handler = ModelHandler(model, tokenizer)
        >>> async for piece in handler.generate("What is a token?", stream=True):
        ...     print(piece, end="", flush=True)
    """

    def __init__(self, model, tokenizer):
        """Args: model, tokenizer: as returned by `load_chat_model` from exercise 1.1."""
        self._model, self._tokenizer = model, tokenizer
        # all answers queue their steps for this one thread, so they take turns
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        """Answer one user message. Read the answer with `async for`.

        The model's input is the system message "You are a helpful assistant." and the whole
        `prompt`, in the tokenizer's own chat template, with the generation prompt. The answer ends
        at the tokenizer's own end token (`tokenizer.eos_token_id`), which is one of the model's
        (`model.generation_config.eos_token_id`, a list). Whether it also ends at the others is not
        graded.

        Args:
            prompt: what the user says.
            stream: True yields the answer in pieces, each as early as possible. At any point while
                the model is working, all text so far, up to the last space, newline or Chinese
                ideograph, has already been yielded (spaces and newlines at its end may wait). No
                piece is empty. False yields the answer as exactly one piece, which may be empty. If a
                token ends inside a character, its text may wait for the rest of that character.
            max_new_tokens: the maximum number of tokens in the answer. If this limit cuts a
                character in two, that character is left out, possibly along with the rest of its
                token's text.
            temperature: an int or a float. 0 always picks the most likely token. Above 0, each token
                is sampled from softmax(logits / temperature), independently in each answer (tested
                from 0.002 to 50). The checkpoint's own settings have no effect: top_k, top_p, min_p,
                repetition_penalty, no_repeat_ngram_size, num_beams, min_length, min_new_tokens,
                suppress_tokens, bad_words_ids.

        Yields:
            Pieces of text. Joined together, they are the answer, with nothing from the prompt, no
            special tokens and no broken characters. (Unspecified: tokens whose bytes do not form a
            character, which a high temperature may pick, and a U+FFFD that the model itself writes.)

        Raises:
            Whatever Exception the model raises, immediately, with the same type and message. Later
            answers are not affected. (Unspecified: StopIteration and StopAsyncIteration, which
            Python's generators replace.)

        The reader may leave at any time: by `aclose()` between two pieces, or by being cancelled
        while it waits, even while other answers are ahead of it in the queue. The model then stops
        within two steps after the one in progress. No one has to wait for it to stop, and no other
        answer is affected.
        """
        loop = asyncio.get_running_loop()
        steps = self._steps(prompt, max_new_tokens, temperature)
        pieces = []
        # one step at a time: for a reader who leaves or stops reading, no more steps are run
        while (piece := await loop.run_in_executor(self._model_thread, next, steps, None)) is not None:
            if piece and stream:
                yield piece
            else:
                pieces.append(piece)
        if not stream:
            yield "".join(pieces)

    @torch.inference_mode()
    def _steps(self, prompt, max_new_tokens, temperature):
        """Runs the model for one step per `next`; yields the text that the step completes."""
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
            # None while a character is missing some of its bytes
            yield text.step(self._tokenizer.backend_tokenizer, ids.item()) or ""


def _choose(logits, temperature):
    """The next token's id, of shape (1, 1), from logits of shape (1, vocabulary)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    # the largest becomes 0, so that no temperature is too small to divide by
    logits = (logits - logits.max()) / temperature
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1)
