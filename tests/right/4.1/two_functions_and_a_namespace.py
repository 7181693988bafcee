import bisect
from types import SimpleNamespace

from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    left = slots.window - len(prompt_ids)
    if left <= 0:
        raise ValueError(f"the window has {slots.window} positions, the prompt {len(prompt_ids)}")
    limit = left if options["limit"] is None else min(options["limit"], left)
    return Sequence(tokenizer, prompt_ids, **dict(options, limit=limit), eos_token_ids=list(slots.eos_token_ids))


def worth_giving(piece):
    return bool(piece.text) or bool(piece.finish_reason)


def run(slots, tokenizer, take, give):
    queue = []
    users = {}
    free = list(range(slots.slots))

    def release(user):
        users.pop(user.key)
        bisect.insort(free, user.slot)

    def after_prefill(user):
        try:
            user.sequence = open_sequence(slots, tokenizer, user.ids, user.options)
        except Exception as reason:
            return 0, reason
        user.slot = free.pop(0)
        users[user.key] = user
        try:
            return 1, user.sequence.take(slots.prefill(user.slot, user.ids))
        except Exception as reason:
            release(user)
            return 1, reason

    while (events := take(False if users or queue else True)) is not None:
        for event in events:
            if event[0] == "ask":
                queue.append(SimpleNamespace(key=event[1], ids=event[2], options=event[3], slot=None))
                continue
            if event[1] in users:
                release(users[event[1]])
                continue
            for place, user in enumerate(queue):
                if user.key == event[1]:
                    del queue[place]
                    break

        count = 0
        while queue and free and count != 4:
            user = queue.pop(0)
            prefills, result = after_prefill(user)
            count += prefills
            if isinstance(result, Exception):
                give([(user.key, result)])
                continue
            if result.finish_reason:
                release(user)
            if worth_giving(result):
                give([(user.key, result)])

        if not users:
            continue
        now = sorted(users.values(), key=lambda user: user.slot)
        try:
            table = slots.step(tuple(user.slot for user in now), tuple(user.sequence.token for user in now))
        except Exception as reason:
            for user in now:
                release(user)
                give([(user.key, reason)])
            continue
        results = []
        for number, user in enumerate(now):
            piece = user.sequence.take(table[number])
            if user.sequence.finished:
                release(user)
            results.append((user.key, piece))
        give([(key, piece) for key, piece in results if worth_giving(piece)])

    give([(key, RuntimeError("shutting down")) for key in [*users, *(user.key for user in queue)]])
