"""The probe: hooks inside the model, so that a test decides by causes and not by clocks.

It sits on the decoder (`model.model`) and on `lm_head`, so `model.generate`, `model(...)` and
`model.forward(...)` are alike to it, with a cache or without. A test can hold the model before one
of its steps, count its steps, see the ids that went in, choose what it says, and make it fail.

Not covered: an answer that copies the weights into a model of its own.
"""

import asyncio
import builtins
import contextlib
import threading

import torch


class Conversation:
    """One sequence on its way through the model."""

    def __init__(self, prompt_ids, prompt):
        self.prompt_ids = list(prompt_ids)
        self.prompt = prompt
        self.ids = list(prompt_ids)
        self.steps = 1
        self.over = False
        self.next_ids = set()
        """The ids that the model could say after its last step; None if any."""

    def report(self):
        return {
            "prompt": self.prompt,
            "prompt_ids": self.prompt_ids,
            "steps": self.steps,
            "new_ids": self.ids[len(self.prompt_ids) :],
        }


class Probe:
    """Watches and steers one model. A step is one forward pass; the first one is the prefill.

    All methods may be called from any thread.
    """

    def __init__(self, model, tokenizer):
        self.tokenizer = tokenizer
        self.eos_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._changed = threading.Condition()
        self._local = threading.local()
        self._conversations = []
        self._steps = 0
        self._held = 0
        self._steps_in_a_loop = 0
        self._hold_before = None
        self._releases = 0
        self._fail_before = None
        self._sayings = []
        self._logits = []
        self._ended = False
        self._watches = True
        model.model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.model.register_forward_hook(self._after, with_kwargs=True)
        model.lm_head.register_forward_hook(self._choose)

    def hold(self, step=1):
        """From now on each conversation waits before its step of that number (1 is the prefill).

        One that is held before another step goes on, up to this one: `hold(5)` after `hold(4)` lets
        a single step through.
        """
        with self._changed:
            self._hold_before = step
            self._changed.notify_all()

    def release(self):
        """Lets all held conversations go on, and holds no more. Returns when they do, so that none still sleeps."""
        with self._changed:
            self._hold_before = None
            self._releases += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._held, timeout=1.0)

    def end(self):
        """Makes every conversation say the end-of-turn token from now on, and lets them go on."""
        with self._changed:
            self._ended = True
        self.release()

    def begin_anew(self):
        """Forgets all that it was told and has seen. Conversations that still go on are not held, and
        end with their next token."""
        with self._changed:
            for each in self._conversations:
                each.over = True
            self._hold_before = self._fail_before = None
            self._sayings, self._logits = [], []
            self._steps = self._steps_in_a_loop = 0
            self._ended = False
        self.release()

    def fail(self, step, message="the model is broken", error="RuntimeError"):
        """Makes the step of that number raise the built-in `error` in each conversation."""
        with self._changed:
            self._fail_before = (step, getattr(builtins, error), message)

    def mend(self):
        with self._changed:
            self._fail_before = None

    def say(self, text, when=""):
        """Makes the model answer `text` and end its turn, where the prompt contains `when`."""
        self.say_ids([*self.tokenizer(text)["input_ids"], self.eos_id], when)

    def say_ids(self, ids, when=""):
        """As `say`, with the ids themselves; after the last of them the end-of-turn token repeats."""
        with self._changed:
            self._sayings.insert(0, (when, list(ids)))

    def logits(self, values, when=""):
        """Makes the next token's logits the same at each step, where the prompt contains `when`:
        `values` is {id: logit}, the rest -1e4."""
        with self._changed:
            self._logits.insert(0, (when, {int(id): float(each) for id, each in values.items()}))

    @contextlib.contextmanager
    def unwatched(self):
        """Within it a forward pass counts for nothing, and is neither held nor made to fail."""
        self._watches = False
        try:
            yield
        finally:
            self._watches = True

    @property
    def steps(self):
        """How many steps the model has made in all."""
        return self._steps

    @property
    def held(self):
        """How many conversations are held now."""
        return self._held

    def steps_of(self, prompt):
        """How many steps it has made where the prompt contains that."""
        with self._changed:
            return sum(each.steps for each in self._conversations if prompt in each.prompt and not each.over)

    def report(self):
        """Steps in all, conversations held now, steps run inside an event loop's thread, and each conversation."""
        with self._changed:
            return {
                "steps": self._steps,
                "held": self._held,
                "steps_in_a_loop": self._steps_in_a_loop,
                "conversations": [each.report() for each in self._conversations if not each.over],
            }

    def _before(self, decoder, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._local.rows = None
        if ids is None or not self._watches:
            return
        past = kwargs.get("past_key_values")
        with self._changed:
            rows = self._rows(ids, past, kwargs.get("attention_mask"))
            self._local.rows = rows
            self._steps += 1
            self._steps_in_a_loop += asyncio._get_running_loop() is not None
            if self._is_held(rows):
                self._held += 1
                self._changed.notify_all()
                releases = self._releases
                self._changed.wait_for(lambda: self._releases > releases or not self._is_held(rows))
                self._held -= 1
                self._changed.notify_all()
            if self._fail_before and any(row.steps == self._fail_before[0] and not row.over for row in rows):
                _, error, message = self._fail_before
                raise error(message)

    def _is_held(self, rows):
        return any(row.steps == self._hold_before and not row.over for row in rows)

    def _rows(self, ids, past, mask):
        known = getattr(past, "_probe_rows", None) if past is not None else None
        if known and past.get_seq_length() > 0 and len(known) == ids.shape[0]:
            for row, new in zip(known, ids.tolist(), strict=True):
                row.ids.extend(new)
                if self._is_prompt(row, new):
                    row.prompt_ids = list(row.ids)
                    row.prompt = self.tokenizer.decode(row.ids)
                else:
                    row.steps += 1
                row.next_ids = set()
            return known
        rows = []
        for index, row_ids in enumerate(ids.tolist()):
            if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
                row_ids = [id for id, seen in zip(row_ids, mask[index].tolist(), strict=True) if seen]
            rows.append(self._continued_without_cache(row_ids) or self._started(row_ids))
        return rows

    def _continued_without_cache(self, row_ids):
        for row in reversed(self._conversations):
            if row.ids == row_ids[:-1]:
                row.ids = row_ids
                row.steps += 1
                return row
        return None

    def _is_prompt(self, row, new):
        """Whether the new ids are not what the model has just said: the prompt comes in parts."""
        if row.next_ids is not None:
            return new[0] not in row.next_ids
        text = self.tokenizer.decode(row.ids)
        return any(when in text for when, _ in self._logits + self._sayings)

    def _started(self, row_ids):
        row = Conversation(row_ids, self.tokenizer.decode(row_ids))
        self._conversations.append(row)
        return row

    def _after(self, decoder, args, kwargs, output):
        cache = getattr(output, "past_key_values", None)
        rows = getattr(self._local, "rows", None)
        if cache is not None and rows is not None:
            cache._probe_rows = rows

    def _choose(self, head, args, logits):
        rows = getattr(self._local, "rows", None) or []
        with self._changed:
            for index, row in enumerate(rows):
                values = self._next_logits(row)
                row.next_ids = set(values) if values else None
                if values:
                    last = _last_position(logits, index, len(rows))
                    last[:] = -1e4
                    last[list(values)] = last.new_tensor(list(values.values()))
        return logits

    def _next_logits(self, row):
        """{id: logit}; None where the model says what it likes."""
        if self._ended or row.over:
            return {self.eos_id: 1e4}
        for when, values in self._logits:
            if when in row.prompt:
                return values
        for when, ids in self._sayings:
            if when in row.prompt:
                said = len(row.ids) - len(row.prompt_ids)
                return {ids[said] if said < len(ids) else self.eos_id: 1e4}
        return None


class ProbeOutside:
    """A room's Probe as a test sees it, from outside: the same methods."""

    def __init__(self, room):
        self._room = room

    def __getattr__(self, method):
        def call(*arguments):
            return self._room._ask("probe", {"method": method, "arguments": list(arguments)})

        return call

    @property
    def steps(self):
        return self.report()["steps"]

    @property
    def held(self):
        return self.report()["held"]


def _last_position(logits, row, rows):
    """The logits after a row's last token. Of the shapes (rows, length, vocabulary), (rows,
    vocabulary) and, of a single row, also (length, vocabulary) and (vocabulary,)."""
    if logits.dim() == 3:
        return logits[row, -1]
    if logits.dim() == 2:
        return logits[-1 if rows == 1 else row]
    return logits


def without_layers(config, input_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, **_):
    """A decoder's forward that computes nothing; the cache grows as it should."""
    from transformers import DynamicCache
    from transformers.modeling_outputs import BaseModelOutputWithPast

    count, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
    if use_cache is None:
        use_cache = config.use_cache
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=config)
    if past_key_values is not None:
        heads = config.num_key_value_heads
        size = config.hidden_size // config.num_attention_heads
        nothing = torch.zeros(count, heads, length, size)
        for layer in range(config.num_hidden_layers):
            past_key_values.update(nothing, nothing, layer)
    return BaseModelOutputWithPast(
        last_hidden_state=torch.zeros(count, length, config.hidden_size),
        past_key_values=past_key_values if use_cache else None,
    )


def one_column(head):
    """A head's forward for the zeros of `without_layers`: it reads the first of them alone."""
    # a copy: in the whole matrix the column's numbers lie far from each other
    column = head.weight[:, :1].detach().clone().requires_grad_(head.weight.requires_grad)
    return lambda hidden: torch.nn.functional.linear(hidden[..., :1], column)
