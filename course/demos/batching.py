"""What stage 4's lesson shows about a loop that batches: which answers each call was for, in order, without a clock.

people = {"Ann": (0, 12), "Ben": (3, 5)}       # (arrives after how many steps, wants how many tokens)
served = serve(run, slot_model, tokenizer, people)
served.calls                                   # [("P", ["Ann"]), ("S", ["Ann"]), ...]
plots.calls(served)
"""

from dataclasses import dataclass, field


@dataclass
class Served:
    """A loop's calls to the slot model: "P" is a prefill, "S" a step, each with the names of the people in it."""

    calls: list = field(default_factory=list)
    came: dict = field(default_factory=dict)
    """For each name, how many calls there had been when that person arrived."""
    given: list = field(default_factory=list)

    def __str__(self):
        return " ".join(kind for kind, _ in self.calls)

    def count(self, kind):
        return sum(each == kind for each, _ in self.calls)

    def text(self, name):
        return "".join(piece.text for key, piece in self.given if key == name)


def serve(run, slot_model, tokenizer, people, leaves=None, **options):
    """Let a loop serve these people, each with a different question.

    Args:
        run: the loop, as in exercise 4.1.
        people: {name: (after how many steps they arrive, how many tokens their answer has)}.
        leaves: {name: after how many steps they leave}.
        options: options for all sequences, in addition to temperature=0.
    """
    served = Served()
    prompts = {name: prompt(tokenizer, f"Hello, I am {name}. Tell me a story.") for name in people}
    asks = [
        (at, ("ask", name, prompts[name], {"temperature": 0, **options, "limit": limit}))
        for name, (at, limit) in people.items()
    ]
    coming = sorted(asks + [(at, ("leave", name)) for name, at in (leaves or {}).items()], key=lambda each: each[0])

    def take(wait):
        steps = served.count("S")
        now = [message for at, message in coming if at <= steps] or ([coming[0][1]] if wait and coming else [])
        coming[:] = [each for each in coming if each[1] not in now]
        return None if wait and not now else now

    run(
        _Watched(slot_model, served, {tuple(ids): name for name, ids in prompts.items()}),
        tokenizer,
        take,
        served.given.extend,
    )
    for name, (at, _) in people.items():
        served.came[name] = next(
            (n for n in range(len(served.calls)) if sum(k == "S" for k, _ in served.calls[:n]) >= at), 0
        )
    return served


def one_batch_after_the_other(slots, tokenizer, take, give):
    """Static batching, for the plot: newcomers join only when the whole batch has ended."""
    queue = []
    while True:
        came = take(not queue)
        if came is None:
            return
        queue += came
        batch, queue = queue[: slots.slots], queue[slots.slots :]
        tokens = [int(slots.prefill(slot, ids).argmax()) for slot, (_, _, ids, _) in enumerate(batch)]
        left = [options["limit"] - 1 for *_, options in batch]
        while max(left) > 0:
            alive = [slot for slot, more in enumerate(left) if more > 0]
            logits = slots.step(alive, [tokens[slot] for slot in alive])
            for slot, token in zip(alive, logits.argmax(-1).tolist(), strict=True):
                tokens[slot], left[slot] = token, left[slot] - 1


def prompt(tokenizer, text):
    """The ids of a prompt with this question."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )["input_ids"]


class _Watched:
    """A slot model that records its calls. It has no end tokens, so answers end only at their limits."""

    def __init__(self, slot_model, served, names):
        self.slots, self.window, self.eos_token_ids = slot_model.slots, slot_model.window, set()
        self._model, self._served, self._names, self._held = slot_model, served, names, {}

    def prefill(self, slot, ids):
        self._held[slot] = self._names[tuple(ids)]
        self._served.calls.append(("P", [self._held[slot]]))
        return self._model.prefill(slot, ids)

    def step(self, slots, ids):
        self._served.calls.append(("S", [self._held[slot] for slot in slots]))
        return self._model.step(slots, ids)
