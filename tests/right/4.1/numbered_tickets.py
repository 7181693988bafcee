"""A heap of tickets; whoever leaves has the ticket struck, and it is thrown away at its turn."""

import heapq
import itertools

import torch
from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    left = slots.window - len(prompt_ids)
    if left < 1:
        raise ValueError(f"{len(prompt_ids)} ids, and room for {slots.window}")
    limit = left if options["limit"] is None else min(options["limit"], left)
    return Sequence(tokenizer, prompt_ids, **{**options, "limit": limit}, eos_token_ids=list(slots.eos_token_ids))


@torch.inference_mode()
def run(slots, tokenizer, take, give):
    numbers = itertools.count()
    tickets, of_key, running = [], {}, {}
    free = list(range(slots.slots))

    def gone(key):
        ticket = of_key.pop(key)
        if ticket["slot"] is not None:
            del running[ticket["slot"]]
            heapq.heappush(free, ticket["slot"])
        ticket["struck"] = True

    def pieces(slots_and_rows):
        for slot, row in slots_and_rows:
            ticket = running[slot]
            piece = ticket["sequence"].take(row)
            if piece.finish_reason:
                gone(ticket["key"])
            if piece.text or piece.finish_reason:
                yield ticket["key"], piece

    while True:
        mail = take(not of_key)
        if mail is None:
            give([(key, RuntimeError("bye")) for key in of_key])
            return None
        for what, key, *rest in mail:
            if what == "leave":
                if key in of_key:
                    gone(key)
                continue
            of_key[key] = {"key": key, "asked": rest, "slot": None, "struck": False, "sequence": None}
            heapq.heappush(tickets, (next(numbers), of_key[key]))

        newcomers = 0
        while tickets and free and newcomers < 4:
            _, ticket = heapq.heappop(tickets)
            if ticket["struck"]:
                continue
            key, (ids, options) = ticket["key"], ticket["asked"]
            try:
                ticket["sequence"] = open_sequence(slots, tokenizer, ids, options)
                newcomers += 1
                logits = slots.prefill(free[0], ids)
            except Exception as error:
                gone(key)
                give([(key, error)])
                continue
            ticket["slot"] = heapq.heappop(free)
            running[ticket["slot"]] = ticket
            give(list(pieces([(ticket["slot"], logits)])))

        if running:
            order = sorted(running, reverse=True)
            try:
                logits = slots.step(order, [running[slot]["sequence"].token for slot in order])
            except Exception as error:
                keys = [running[slot]["key"] for slot in order]
                for key in keys:
                    gone(key)
                give([(key, error) for key in keys])
            else:
                give(list(pieces(zip(order, logits.unbind(), strict=True))))
