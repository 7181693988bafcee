"""Exercise 3.6: a chat model for a server: messages in, pieces with counts and a reason out."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from safe_prompt import encode_chat
from sequence import Piece, Sequence


class ChatModel:
    """One model that answers many conversations at once, for a server with an event loop.

    The event loop never waits for the model. Answers generated at the same time do not get mixed up.
    When 64 are being read at once, all of them finish.

    Example:
        >>> chat_model = ChatModel(model, tokenizer)
        >>> async for piece in chat_model.chat([{"role": "user", "content": "你好"}], stop=["\\n"]):
        ...     print(piece.text, end="", flush=True)
    """

    def __init__(self, model, tokenizer):
        """Args: model, tokenizer: as `load_chat_model` of exercise 1.1 returns them."""
        self._model, self._tokenizer = model, tokenizer
        # all steps of all answers queue for this one thread, each behind the others'
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    async def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        """Answer a conversation. Read the answer with `async for`.

        The model is given the ids that the tokenizer's chat template makes of the conversation,
        with the generation prompt. Nothing is added, and control tokens in a message's content are
        text, as in `encode_chat` from exercise 1.5. Every `eos_token_id` of the model's
        `generation_config`, one id or a list, ends the answer; its other settings are ignored.

        Args:
            messages: [{"role": "user", "content": "你好"}, ...]; roles are system, user, assistant.
            max_tokens: the maximum number of tokens. None, or more than is left of the model's
                window (`config.max_position_embeddings`), means whatever is left.
            temperature, top_p, seed, stop: as in `Sequence` from exercise 3.5. Once a stop sequence
                is complete, the model takes at most two more steps: you may run that far ahead.

        Yields:
            Piece (or any object with its four attributes): text, counts and reason are those of a
            Sequence. Text that a Sequence has returned does not wait for any further step.
            The last piece, and no other, has a `finish_reason`, and its text may be empty; all others
            have text. `completion_tokens` counts at least the tokens behind the text so far.

        Raises:
            ValueError: the prompt fills or exceeds the window. The message has both numbers. Raised
                at the call or when the first piece is requested, before any step of the model.
            Whatever Exception the model raises, with its type and message, immediately. The next
                answer works.

        The reader may leave at any time: by calling `aclose()` between two pieces, or by being
        cancelled while it waits (it gets the CancelledError), even while other answers are ahead of
        it. The model then stops within two steps after the one in progress, no one waits for it to
        stop, and no other answer is affected.
        """
        loop = asyncio.get_running_loop()
        steps = self._steps(messages, max_tokens, temperature, top_p, seed, stop)
        piece = Piece("", 0, 0)
        # one step at a time: for a reader who leaves or stops reading, no more steps are run
        while piece.finish_reason is None:
            piece = await loop.run_in_executor(self._model_thread, next, steps)
            if piece.text or piece.finish_reason:
                yield piece

    @torch.inference_mode()
    def _steps(self, messages, max_tokens, temperature, top_p, seed, stop):
        """Runs one step of the model for each `next` and yields its piece."""
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
