from enum import Enum, auto

from sequence import Piece, Sequence  # noqa: F401


class State(Enum):
    WAITING = auto()
    RUNNING = auto()


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    left = slots.window - len(prompt_ids)
    if left < 1:
        raise ValueError(f"no room: {len(prompt_ids)} of {slots.window} positions are the prompt's")
    limit = options["limit"]
    return Sequence(
        tokenizer,
        prompt_ids,
        **{**options, "limit": left if limit is None else min(limit, left)},
        eos_token_ids=[*slots.eos_token_ids],
    )


def run(slots, tokenizer, take, give):
    answers = {}

    def in_state(state):
        return [key for key, answer in answers.items() if answer["state"] is state]

    def show(key, piece):
        if piece.finish_reason is not None:
            del answers[key]
        if piece.text != "" or piece.finish_reason is not None:
            give([(key, piece)])

    def fail(key, error):
        del answers[key]
        give([(key, error)])

    def next_free():
        taken = [answers[key]["slot"] for key in in_state(State.RUNNING)]
        for slot in range(slots.slots):
            if slot not in taken:
                return slot

    def prefill():
        """At most one prefill; whether there was one."""
        for key in in_state(State.WAITING):
            slot = next_free()
            if slot is None:
                return False
            answer = answers[key]
            try:
                answer["sequence"] = open_sequence(slots, tokenizer, answer["prompt"], answer["options"])
            except Exception as error:
                fail(key, error)
                continue
            try:
                logits = slots.prefill(slot, answer["prompt"])
            except Exception as error:
                fail(key, error)
                return True
            answer.update(state=State.RUNNING, slot=slot)
            show(key, answer["sequence"].take(logits))
            return True
        return False

    while True:
        arrived = take(not answers)
        if arrived is None:
            break
        for message in arrived:
            match message:
                case ("ask", key, prompt, options):
                    answers[key] = {"state": State.WAITING, "prompt": prompt, "options": options}
                case ("leave", key):
                    answers.pop(key, None)
        for _ in range(4):
            if not prefill():
                break
        batch = in_state(State.RUNNING)
        if batch:
            try:
                logits = slots.step(
                    [answers[key]["slot"] for key in batch], [answers[key]["sequence"].token for key in batch]
                )
            except Exception as error:
                for key in batch:
                    fail(key, error)
            else:
                for key, row in zip(batch, logits):
                    show(key, answers[key]["sequence"].take(row))

    for key in list(answers):
        fail(key, RuntimeError("the engine stops"))
