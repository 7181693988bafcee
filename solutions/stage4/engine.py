"""Exercise 4.1: continuous batching, in one plain loop: many answers share each step of one model."""

from heapq import heappop, heappush

from sequence import Sequence


# given
def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    """Create the Sequence for an answer, with its limit capped at what is left of the window.

    Args:
        slots: the slot model.
        options: the keyword arguments of `Sequence` except `eos_token_ids`; `limit` may be None.

    Raises:
        ValueError: the prompt fills the window. The message has both numbers.
        Whatever `Sequence` raises for these options.
    """
    left = slots.window - len(prompt_ids)
    if left < 1:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens, and the model's window holds {slots.window}: no room"
            " is left for an answer"
        )
    limit = left if options["limit"] is None else min(options["limit"], left)
    return Sequence(tokenizer, prompt_ids, **{**options, "limit": limit}, eos_token_ids=list(slots.eos_token_ids))


def run(slots, tokenizer, take, give):
    """Answer everyone who asks, many at once, until the server closes. One plain loop: no threads, no asyncio.

    It works in rounds:

    1. Call `take` to get what has arrived, with `wait=True` if, and only if, nothing is running or waiting.
    2. Admit up to four newcomers, with one prefill each: first come, first served, each into the lowest
       free slot. Those who find no free slot wait.
    3. Run one step for all the answers that are running. If nothing is running, there is no step.

    What a prefill or a step has produced is passed to `give` before the next step and before the next `take`. An answer
    that ends frees its slot immediately, for the next prefill of the same round.

    Everyone who asks is given the pieces of a `Sequence`: those with text, and the last one. If something
    fails, the last thing given is an exception instead:

    - what `open_sequence` raised. It costs no call to the slot model and is not one of the four;
    - what `prefill` raised, for that answer alone. Whether it is one of the four is up to you;
    - what `step` raised, for everyone in that step.

    Each of these is an Exception. The loop carries on, and the slots of those answers are free.

    Each answer is what it would be alone, whatever else is running. After a `leave`, no call includes that
    answer and nothing more is given for it, and if it was waiting, it costs no prefill. A `leave` for
    an unknown key, or for an answer that has ended, is ignored. (If an `ask` that is refused and its `leave`
    are in the same list, its exception is given as soon as you read the ask, or not at all.)

    Not graded: errors in `take`, in `give` or in `Sequence.take`.

    Args:
        slots: the slot model, with `slots.slots` (how many sequences it has room for, numbered from
            0), `slots.window` (positions in each) and `slots.eos_token_ids`.
            `slots.prefill(slot, ids)` forgets what the slot held, runs a prompt, and returns the next
            token's logits, shape (vocabulary,). `slots.step(slots, ids)` appends one token to each of
            these slots, in any order, and returns the next tokens' logits, shape
            (len(slots), vocabulary). A slot that is no longer used needs no call.
        tokenizer: for `open_sequence`.
        take: `take(wait)` returns what has arrived since it was last called, in order: a list of
            ("ask", key, prompt_ids, options) and ("leave", key). With `wait=True` it blocks until
            there is something; with False it returns immediately, with [] if there is nothing. It
            returns None when the server closes: then everything that is running or waiting is given a
            RuntimeError, and `run` returns. Keys are any hashable objects, including 0 and None. A key
            may be used again once its answer has ended or left, even in the same list.
        give: `give(outs)` takes a list of (key, piece) and (key, exception).

    Example: two slots; a and b ask, c asks a little later.
        take(True)   -> [("ask", "a", ...), ("ask", "b", ...)]
        prefill(0, a's ids)  prefill(1, b's ids)  give  step([0, 1], ...)  give
        take(False)  -> [("ask", "c", ...)]
        step([0, 1], ...)    give                          a has ended: slot 0 is free
        take(False)  -> []
        prefill(0, c's ids)  give  step([0, 1], ...)  give
    """
    waiting = {}  # key: (prompt_ids, options), in order of arrival
    running = {}  # key: (slot, sequence)
    free = list(range(slots.slots))  # a heap: the lowest is taken first

    def end(key):
        slot, _ = running.pop(key)
        heappush(free, slot)

    def give_next(keys, logits):
        """Take each answer's next token, with one row of logits per key, on the CPU."""
        outs = []
        for key, row in zip(keys, logits, strict=True):
            _, sequence = running[key]
            piece = sequence.take(row)
            if piece.text or piece.finish_reason:
                outs.append((key, piece))
            if piece.finish_reason:
                end(key)
        if outs:
            give(outs)

    while (arrived := take(not running and not waiting)) is not None:
        for what, key, *asked in arrived:
            if what == "ask":
                waiting[key] = asked
            elif key in running:
                end(key)
            else:
                waiting.pop(key, None)

        prefills = 0
        while waiting and free and prefills < 4:
            key = next(iter(waiting))
            prompt_ids, options = waiting.pop(key)
            try:
                sequence = open_sequence(slots, tokenizer, prompt_ids, options)
            except Exception as error:
                give([(key, error)])
                continue
            prefills += 1
            slot = heappop(free)
            running[key] = slot, sequence
            try:
                logits = slots.prefill(slot, prompt_ids)
            except Exception as error:
                end(key)
                give([(key, error)])
            else:
                give_next([key], [logits.cpu()])

        if running:
            # in slot order, the rows of the caches need not be gathered
            batch = sorted(running.items(), key=lambda item: item[1][0])
            keys = [key for key, _ in batch]
            try:
                logits = slots.step([slot for _, (slot, _) in batch], [sequence.token for _, (_, sequence) in batch])
            except Exception as error:
                for key in keys:
                    end(key)
                give([(key, error) for key in keys])
            else:
                give_next(keys, logits.cpu())

    give([(key, RuntimeError("the server closes")) for key in (*running, *waiting)])
