"""Exercise 3.6: a chat model for a server: messages in, pieces with counts and a reason out."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from safe_prompt import encode_chat
from sequence import Piece, Sequence


class ChatModel:
    """One model that answers many conversations at once, for a server with an event loop.

    The event loop never waits for the model. Answers made at the same time do not mix; 64 that
    are all being read all reach their end.

    Example:
        >>> chat_model = ChatModel(model, tokenizer)
        >>> async for piece in chat_model.chat([{"role": "user", "content": "你好"}], stop=["\\n"]):
        ...     print(piece.text, end="", flush=True)
    """

    def __init__(self, model, tokenizer):
        """Args: model, tokenizer: as `load_chat_model` of exercise 1.1 returns them."""
        self._model, self._tokenizer = model, tokenizer
        # all steps of all answers stand in this one thread's queue, each behind the others'
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        """Answer a conversation; to be read with `async for`.

        The model is given the ids of the tokenizer's chat template with the generation prompt.
        Nothing is added, and control tokens in a content are text, as `encode_chat` of exercise 1.5
        makes them. Every `eos_token_id` of the model's `generation_config`, one or a list, ends the
        answer; its other settings do not count.

        Args:
            messages: [{"role": "user", "content": "你好"}, ...]; roles are system, user, assistant.
            max_tokens: at most this many tokens. None, or more than is left of the model's window
                (`config.max_position_embeddings`), means what is left of it.
            temperature, top_p, seed, stop: as `Sequence` of exercise 3.5 takes them. When a stop
                sequence is complete, the model makes at most two more steps.

        Yields:
            Piece (or any object with its four attributes): text, counts and reason are those of a
            Sequence, and text that a Sequence has given comes out while the model works on. The
            last piece, and only it, has a `finish_reason`, and its text may be empty; all others
            have text. `completion_tokens` counts at least the tokens behind the text so far.

        Raises:
            ValueError: the prompt fills the window or more. The message has both numbers. Raised at
                the call or when the first piece is asked for, before any step of the model.
            Whatever Exception the model raises, with its type and message, at once. The next answer works.

        The reader may leave at any time: by `aclose()` between two pieces, or by being cancelled
        while it waits (it gets the CancelledError), even while other answers have to be made first.
        Then the model stops within two steps after the one in progress, without anyone waiting for
        it, and no other answer is disturbed.
        """
        loop = asyncio.get_running_loop()
        steps = self._steps(messages, max_tokens, temperature, top_p, seed, stop)
        piece = Piece("", 0, 0)
        # one step at a time: a reader who leaves or does not read asks for no more of them
        while piece.finish_reason is None:
            piece = await loop.run_in_executor(self._model_thread, next, steps)
            if piece.text or piece.finish_reason:
                yield piece

    @torch.inference_mode()
    def _steps(self, messages, max_tokens, temperature, top_p, seed, stop):
        """Runs the model one step for each `next`; yields the step's piece."""
        prompt_ids = encode_chat(self._tokenizer, messages)
        window = self._model.config.max_position_embeddings
        left = window - len(prompt_ids)
        if left < 1:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens, and the model's window holds {window}: no room"
                " is left for an answer"
            )
        end = self._model.generation_config.eos_token_id
        sequence = Sequence(
            self._tokenizer,
            prompt_ids,
            limit=left if max_tokens is None else min(max_tokens, left),
            eos_token_ids=end if isinstance(end, list) else [end],
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        ids, cache = prompt_ids, None
        while not sequence.finished:
            output = self._model(
                input_ids=torch.tensor([ids], device=self._model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            yield sequence.take(output.logits[0, -1].float().cpu())
            ids = [sequence.token]
