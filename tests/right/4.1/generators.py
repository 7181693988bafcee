"""Each answer is a generator that is sent logits and yields what to show."""

from collections import OrderedDict

from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    left = slots.window - len(prompt_ids)
    if left < 1:
        raise ValueError(f"prompt of {len(prompt_ids)} ids, window of {slots.window}")
    wanted = options.get("limit")
    options = {**options, "limit": min(left, wanted or left)}
    return Sequence(tokenizer, prompt_ids, eos_token_ids=slots.eos_token_ids, **options)


def answer(sequence):
    piece = None
    while not sequence.finished:
        logits = yield piece
        piece = sequence.take(logits)
    yield piece


def run(slots, tokenizer, take, give):
    queue, live = OrderedDict(), OrderedDict()

    def lowest():
        used = {slot for slot, _, _ in live.values()}
        return next((slot for slot in range(slots.slots) if slot not in used), None)

    def send(keys, rows):
        shown = []
        for key, row in zip(keys, rows):
            _, sequence, steps = live[key]
            piece = steps.send(row)
            if sequence.finished:
                live.pop(key)
            if sequence.finished or piece.text:
                shown.append((key, piece))
        give(shown)

    while True:
        messages = take(not (queue or live))
        if messages is None:
            break
        for kind, key, *rest in messages:
            if kind == "leave":
                queue.pop(key, None)
                live.pop(key, None)
            else:
                queue[key] = rest
        budget = 4
        while budget and queue and lowest() is not None:
            key, (prompt_ids, options) = queue.popitem(last=False)
            try:
                sequence = open_sequence(slots, tokenizer, prompt_ids, options)
            except Exception as refused:
                give([(key, refused)])
                continue
            slot = lowest()
            try:
                row = slots.prefill(slot, prompt_ids)
            except Exception as failed:
                give([(key, failed)])
                budget -= 1
                continue
            budget -= 1
            steps = answer(sequence)
            next(steps)
            live[key] = slot, sequence, steps
            send([key], [row])
        if not live:
            continue
        keys = list(live)
        try:
            rows = slots.step([live[key][0] for key in keys], [live[key][1].token for key in keys])
        except Exception as failed:
            live.clear()
            give([(key, failed) for key in keys])
            continue
        send(keys, rows)

    give([(key, RuntimeError("closing")) for key in [*live, *queue]])
