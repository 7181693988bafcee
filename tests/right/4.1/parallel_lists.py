from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    n = len(prompt_ids)
    if n >= slots.window:
        raise ValueError(f"Prompt too long: {n} >= {slots.window}")
    limit = slots.window - n
    if options["limit"] is not None:
        limit = min(limit, options["limit"])
    kwargs = {k: v for k, v in options.items() if k != "limit"}
    return Sequence(tokenizer, prompt_ids, limit=limit, eos_token_ids=list(slots.eos_token_ids), **kwargs)


def run(slots, tokenizer, take, give):
    pending = []
    keys, where, seqs = [], [], []

    def drop(i):
        del keys[i], where[i], seqs[i]

    while True:
        inbox = take(len(pending) == 0 and len(keys) == 0)
        if inbox is None:
            for k in keys + [p[0] for p in pending]:
                give([(k, RuntimeError("closed"))])
            return

        for item in inbox:
            if item[0] == "ask":
                pending.append(item[1:])
            elif item[1] in keys:
                drop(keys.index(item[1]))
            else:
                pending = [p for p in pending if p[0] != item[1]]

        out = []
        n_prefill = 0
        while pending and len(keys) < slots.slots and n_prefill < 4:
            k, ids, options = pending.pop(0)
            try:
                seq = open_sequence(slots, tokenizer, ids, options)
            except Exception as e:
                out.append((k, e))
                continue
            slot = min(s for s in range(slots.slots) if s not in where)
            n_prefill += 1
            try:
                piece = seq.take(slots.prefill(slot, ids))
            except Exception as e:
                out.append((k, e))
                continue
            if piece.text or seq.finished:
                out.append((k, piece))
            if not seq.finished:
                keys.append(k)
                where.append(slot)
                seqs.append(seq)
        if out:
            give(out)

        if not keys:
            continue
        out = []
        try:
            logits = slots.step(where[:], [s.token for s in seqs])
        except Exception as e:
            give([(k, e) for k in keys])
            keys, where, seqs = [], [], []
            continue
        for i in reversed(range(len(keys))):
            piece = seqs[i].take(logits[i])
            if piece.text or piece.finish_reason:
                out.append((keys[i], piece))
            if piece.finish_reason:
                drop(i)
        if out:
            give(out)
