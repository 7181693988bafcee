from collections import deque

from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    left = slots.window - len(prompt_ids)
    if left < 1:
        raise ValueError(f"{len(prompt_ids)} tokens do not fit into a window of {slots.window}")
    options = dict(options)
    limit = options.pop("limit")
    limit = left if limit is None else min(limit, left)
    return Sequence(tokenizer, prompt_ids, limit=limit, eos_token_ids=list(slots.eos_token_ids), **options)


class Request:
    def __init__(self, key, prompt_ids, options):
        self.key = key
        self.prompt_ids = prompt_ids
        self.options = options
        self.sequence = None


class Engine:
    max_prefills = 4

    def __init__(self, slots, tokenizer, give):
        self.slots = slots
        self.tokenizer = tokenizer
        self.give = give
        self.queue = deque()
        self.active = [None] * slots.slots

    @property
    def busy(self):
        return bool(self.queue) or any(request is not None for request in self.active)

    def receive(self, message):
        if message[0] == "ask":
            _, key, prompt_ids, options = message
            self.queue.append(Request(key, prompt_ids, options))
        else:
            self.forget(message[1])

    def forget(self, key):
        for index, request in enumerate(self.active):
            if request is not None and request.key == key:
                self.active[index] = None
                return
        for request in self.queue:
            if request.key == key:
                self.queue.remove(request)
                return

    def free_slot(self):
        for index, request in enumerate(self.active):
            if request is None:
                return index
        return None

    def feed(self, slot, logits):
        request = self.active[slot]
        piece = request.sequence.take(logits)
        if request.sequence.finished:
            self.active[slot] = None
            self.give([(request.key, piece)])
        elif piece.text:
            self.give([(request.key, piece)])

    def admit(self):
        done = 0
        while self.queue and done < self.max_prefills:
            slot = self.free_slot()
            if slot is None:
                break
            request = self.queue.popleft()
            try:
                request.sequence = open_sequence(self.slots, self.tokenizer, request.prompt_ids, request.options)
            except Exception as problem:
                self.give([(request.key, problem)])
                continue
            done += 1
            try:
                logits = self.slots.prefill(slot, request.prompt_ids)
            except Exception as problem:
                self.give([(request.key, problem)])
                continue
            self.active[slot] = request
            self.feed(slot, logits)

    def step(self):
        batch = [(slot, request) for slot, request in enumerate(self.active) if request is not None]
        if not batch:
            return
        try:
            logits = self.slots.step([slot for slot, _ in batch], [request.sequence.token for _, request in batch])
        except Exception as problem:
            for slot, request in batch:
                self.active[slot] = None
                self.give([(request.key, problem)])
            return
        for index, (slot, _) in enumerate(batch):
            self.feed(slot, logits[index])

    def close(self):
        for request in [*self.active, *self.queue]:
            if request is not None:
                self.give([(request.key, RuntimeError("server closed"))])


def run(slots, tokenizer, take, give):
    engine = Engine(slots, tokenizer, give)
    while True:
        messages = take(wait=not engine.busy)
        if messages is None:
            engine.close()
            return
        for message in messages:
            engine.receive(message)
        engine.admit()
        engine.step()
