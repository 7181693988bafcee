"""Opens each sequence as it comes, looks for leavers after each prefill, gives one by one."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from sequence import Piece, Sequence  # noqa: F401


def open_sequence(slots, tokenizer, prompt_ids, options) -> Sequence:
    room = slots.window - len(prompt_ids)
    if room <= 0:
        raise ValueError(f"the prompt's {len(prompt_ids)} tokens fill the window of {slots.window}")
    limit = options["limit"]
    if limit is None or limit > room:
        limit = room
    return Sequence(tokenizer, prompt_ids, **(options | {"limit": limit}), eos_token_ids=list(slots.eos_token_ids))


@dataclass(eq=False)
class Job:
    key: Any
    prompt: list
    sequence: Sequence
    slot: int | None = None


class Closed(Exception):
    pass


def run(slots, tokenizer, take, give):
    waiting: deque[Job] = deque()
    running: list[Job] = []

    def look(wait):
        news = take(wait)
        if news is None:
            raise Closed
        for message in news:
            if message[0] == "ask":
                _, key, prompt, options = message
                try:
                    waiting.append(Job(key, prompt, open_sequence(slots, tokenizer, prompt, options)))
                except Exception as error:
                    give([(key, error)])
            if message[0] == "leave":
                for jobs in (running, waiting):
                    for job in [job for job in jobs if job.key == message[1]]:
                        jobs.remove(job)

    def show(job, logits):
        piece = job.sequence.take(logits)
        if job.sequence.finished:
            running.remove(job)
        if piece.text or job.sequence.finished:
            give([(job.key, piece)])

    def fill():
        for _ in range(4):
            free = sorted(set(range(slots.slots)) - {job.slot for job in running})
            if not waiting or not free:
                return
            job = waiting.popleft()
            job.slot = free[0]
            try:
                logits = slots.prefill(job.slot, job.prompt)
            except Exception as error:
                give([(job.key, error)])
                continue
            running.append(job)
            show(job, logits)
            if running:
                look(False)

    def step():
        batch = list(running)
        try:
            logits = slots.step([job.slot for job in batch], [job.sequence.token for job in batch])
        except Exception as error:
            running.clear()
            for job in batch:
                give([(job.key, error)])
        else:
            for job, row in zip(batch, logits, strict=True):
                show(job, row)

    try:
        while True:
            look(not running and not waiting)
            fill()
            if running:
                step()
    except Closed:
        for job in running + list(waiting):
            give([(job.key, RuntimeError("the server is closing"))])
