"""4.1's surroundings by script: a slot model, `take` and `give`, in one thread and without a clock.

A test has the answer's loop run through a plan, and reads the record of all calls: tests/stage4/loops.py.

What comes "after two steps" is brought by the first `take` after the second step. A loop that waits gets
what comes next; when nothing is left, None. What the slot model says to an answer depends on all the
ids in its slot: where a slot was mixed up, or fed another token, it says something else.

The books (who waits, runs, has ended, has left) are kept on the slot model's side: an answer has ended
when its Sequence alone would have. So each test judges its own matter, whatever else is wrong.
"""

import builtins
import threading
import zlib

MOST_CALLS = 1500
"""A loop that has made so many does not come to an end: no test needs half of them."""
MOST_POLLS = 3
"""So often in a row a loop that has nothing to do may ask without waiting, before it is given what comes next."""
PIECE = ("text", "prompt_tokens", "completion_tokens", "finish_reason")


def run_loop(answer, inside, plan, slots, window, fails):
    """A scene: the answer's `run` between a scripted slot model, `take` and `give`."""
    _, tokenizer = inside.tiny
    around = Surroundings(inside, tokenizer, plan, slots, window, fails)
    outcome = {}
    try:
        outcome = inside.outcome(answer.run, ScriptedSlots(around), tokenizer, around.take, around.give)
    except _Enough:
        pass
    asks = {
        each.name: {
            "given": each.given,
            "at_close": each.at_close,
            "alone": each.due(len(each.alone)),
            "state": each.state,
        }
        for each in around.asks
    }
    played = {"calls": around.calls, "asks": asks, "outcome": outcome}
    return {**played, "endless": around.endless, "other_thread": around.other_thread}


class _Enough(BaseException):
    """Ends a loop that does not end."""


class ScriptedSlots:
    """The slot model: what 4.5 promises, and nothing else."""

    def __init__(self, around):
        self.slots, self.window, self.eos_token_ids = around.slots, around.window, set(around.ends[:2])
        self.prefill, self.step = around.prefill, around.step


class Asked:
    """An answer in the books. `state`: waiting, running, ended or left; refused until it has been told so."""

    def __init__(self, number, spec, words, tokenizer, window, ends):
        self.name, self.spec, self.options, self.number = spec["name"], spec, dict(spec["options"]), number
        key = spec["key"]
        self.key = tuple(key) if isinstance(key, list) else object() if isinstance(key, dict) else key
        self.prompt = [100 + number] * spec["prompt"]
        # no two answers with different prompts say the same word at the same place
        own = [words[(7 * number + at) % len(words)] for at in range(window)]
        says = spec["says"]
        self.says = own if says is None else [*tokenizer(says)["input_ids"], ends[spec["end"]], *own]
        self.state, self.slot, self.rows, self.given, self.at_close = "coming", None, 0, [], []
        self.alone = []
        """For each token what its Sequence gives, or None. If that is refused, or its prefill fails, the error."""

    def due(self, rows):
        return [out for out in self.alone[:rows] if out]


class Surroundings:
    """What the loop is given, and a record of all its calls: dicts with `call` and

    take: wait; idle: whether nothing ran or waited, None where either may be said; brought: names of those who asked,
        "-name" of who left, None for the close; owed: who had not been given what was made, and with wait=True who
        had not been told that it is refused.
    prefill: slot, ask, state: the ask's until then; over: the running answer that lost its slot by it.
    step: slots, asks; missing: those that ran and were left out; extra: others, as "name (state)"; owed.
    prefill, step: free: the slots that were; running, waiting: who ran and waited, before it; error; and for a prefill
        ended: whether its answer has come to its end.
    give: outs: ["name (state)" of the answers], None for one that is not a (key, piece); closed: after the close. One
        that is refused, and leaves in the same list, is refused until the next call of another kind: what is given
        for it alone may have been given when its ask was read.
    """

    def __init__(self, inside, tokenizer, plan, slots, window, fails):
        import torch

        self._torch, self._inside, self._tokenizer = torch, inside, tokenizer
        self.slots, self.window, self._fails = slots, window, fails
        words = _words(tokenizer)
        *self._words, first_end, second_end, self._wrong = words
        self.ends = [first_end, second_end, tokenizer.eos_token_id]
        self.calls, self.asks, self.endless, self.other_thread = [], [], False, False
        self._thread, self._steps, self._polls, self._closed = threading.get_ident(), 0, 0, False
        self._by_key, self._held, self._left_at_once = {}, {}, {}
        self._plan = [[steps, messages and [self._message(each) for each in messages]] for steps, messages in plan]

    # what the loop calls

    def take(self, wait):
        call = self._call("take", wait=bool(wait), idle=self._idle(), owed=self._owed(), brought=[])
        if wait:
            call["owed"] += [each.name for each in self.asks if each.state == "refused"]
        if self._closed:
            raise _Enough
        brought = []
        while self._plan and self._plan[0][0] <= self._steps and brought is not None:
            came = self._plan.pop(0)[1]
            if came is None and brought:
                self._plan.insert(0, [0, None])
                break
            brought = came if came is None else brought + came
        if not brought and brought is not None:
            self._polls += 1
            # one that never waits, or waits when it should not, gets on, too
            most = 10 * MOST_POLLS if not wait and call["idle"] is False else MOST_POLLS
            if (wait and call["idle"] is not False) or self._polls > most:
                self._polls = 0
                brought = self._plan.pop(0)[1] if self._plan else None
        if brought:
            self._polls = 0
        call["brought"] = None if brought is None else [self._book(asked, message) for asked, message in brought]
        self._closed = brought is None
        return None if brought is None else [message for _, message in brought]

    def give(self, outs):
        call, outs = self._call("give", outs=[], closed=self._closed), list(outs)
        for out in outs:
            key, piece = out if isinstance(out, tuple | list) and len(out) == 2 else (None, ...)
            try:
                found = None if piece is ... else self._by_key.get(key)
                if len(outs) == 1 and isinstance(piece, Exception) and key in self._left_at_once:
                    found = self._left_at_once.pop(key)
                    found.state = "refused"
            except TypeError:
                found = None
            call["outs"].append(found and f"{found.name} ({found.state})")
            if found:
                (found.at_close if self._closed else found.given).append(self._plain(piece))
                if found.state == "refused":
                    found.state = "ended"

    def prefill(self, slot, ids):
        ids = _ids(ids)
        asked = self._asked_with(tuple(ids))
        call = self._call("prefill", slot=self._inside.plain(slot), ask=asked and asked.name, error=None, ended=False)
        call.update(state=asked and asked.state, over=None, **self._who(besides=asked))
        if not _is_slot(slot, self.slots) or not 0 < len(ids) <= self.window:
            self._refuse(
                call, f"prefill({slot}, {len(ids)} ids): slots are 0 to {self.slots - 1}, window {self.window}"
            )
        call["over"] = next((each.name for each in self.asks if each.state == "running" and each.slot == slot), None)
        self._held[slot] = [asked, ids]
        if asked is None:
            return self._logits(None, ids)
        began = asked.state == "waiting"
        if began:
            asked.state, asked.slot = "running", slot
            self._advance(asked)
            call["ended"] = asked.state == "ended"
        if asked.spec["fails"]:
            call["error"] = asked.spec["fails"][0]
            raise _error(*asked.spec["fails"])
        return self._logits(asked, ids)

    def step(self, slots, ids):
        slots, ids = list(slots), _ids(ids)
        self._steps += 1
        held = [self._held.get(slot, [None])[0] if _is_slot(slot, self.slots) else None for slot in slots]
        call = self._call("step", slots=self._inside.plain(slots), error=None, owed=self._owed(), **self._who())
        call["asks"] = [each and each.name for each in held]
        call["missing"] = [name for name in call["running"] if name not in call["asks"]]
        call["extra"] = [f"{each.name} ({each.state})" for each in held if each and each.state != "running"]
        self._require_step(call, slots, ids)
        running = [each for each in held if each and each.state == "running"]
        if str(self._steps) in self._fails:
            error = self._fails[str(self._steps)]
            call["error"] = error[0]
            for each in running:
                each.alone[each.rows :] = [{"raised": error[0], "message": error[1]}]
                self._advance(each)
            raise _error(*error)
        rows = []
        for slot, id in zip(slots, ids, strict=True):
            asked, content = self._held[slot]
            content.append(id)
            rows.append(self._logits(asked, content))
        for each in running:
            self._advance(each)
        return self._torch.stack(rows)

    def _require_step(self, call, slots, ids):
        if not slots or len(slots) != len(ids):
            self._refuse(call, f"step({slots}, {ids}): at least one slot, and an id for each")
        if len(set(slots)) < len(slots):
            self._refuse(call, f"step: a slot appears twice: {slots}")
        for slot in slots:
            if not _is_slot(slot, self.slots) or slot not in self._held:
                self._refuse(call, f"step: slot {slot} was never filled")
            if len(self._held[slot][1]) >= self.window:
                self._refuse(call, f"step: slot {slot} is full, its window is {self.window}")

    # the books

    def _message(self, message):
        """Who asks, None for a leave; and what the loop is given."""
        if "leave" in message:
            key = message["leave"]
            return None, ("leave", tuple(key) if isinstance(key, list) else key)
        spec = message["ask"]
        alike = next((each for each in self.asks if each.name == spec["like"]), None)
        number, spec["prompt"] = (alike.number, len(alike.prompt)) if alike else (len(self.asks), spec["prompt"])
        asked = Asked(number, spec, self._words, self._tokenizer, self.window, self.ends)
        asked.alone = self._alone(asked)
        self.asks.append(asked)
        return asked, ("ask", asked.key, list(asked.prompt), dict(asked.options))

    def _alone(self, asked):
        from sequence import Sequence

        left = self.window - len(asked.prompt)
        if left < 1:
            return [{"raised": "ValueError", "message": None}]
        limit = asked.options["limit"]
        options = {**asked.options, "limit": left if limit is None else min(limit, left)}
        try:
            sequence = Sequence(self._tokenizer, asked.prompt, eos_token_ids=self.ends[:2], **options)
        except Exception as error:  # noqa: BLE001 - of whatever class
            return [{"raised": type(error).__name__, "message": str(error)}]
        if asked.spec["fails"]:
            return [dict(zip(("raised", "message"), asked.spec["fails"], strict=True))]
        content, outs = list(asked.prompt), []
        while not sequence.finished:
            piece = sequence.take(self._logits(asked, content))
            content.append(sequence.token)
            outs.append(self._plain(piece) if piece.text or piece.finish_reason else None)
        return outs

    def _asked_with(self, prompt):
        """Whose prefill that is; of equal prompts the first that waits."""
        same = [each for each in self.asks if each.state != "coming" and tuple(each.prompt) == prompt]
        return next((each for each in same if each.state == "waiting"), same[-1] if same else None)

    def _book(self, asked, message):
        """Books a message; returns it in short."""
        key = message[1]
        if asked:
            refused = "raised" in (asked.alone[0] or {}) and not asked.spec["fails"]
            asked.state = "refused" if refused else "waiting"
            self._by_key[key], asked.came = asked, len(self.calls)
            return asked.name
        asked = self._by_key.get(key)
        if asked and asked.state in ("waiting", "running", "refused"):
            if asked.state == "refused" and asked.came == len(self.calls):
                self._left_at_once[key] = asked
            asked.state = "left"
        return f"-{asked.name if asked else key}"

    def _advance(self, asked):
        asked.rows += 1
        if asked.rows == len(asked.alone):
            asked.state = "ended"

    def _idle(self):
        states = {each.state for each in self.asks}
        return False if states & {"waiting", "running"} else None if "refused" in states else True

    def _owed(self):
        return [each.name for each in self.asks if each.state in ("running", "ended") and self._late(each)]

    def _late(self, asked):
        return len(asked.given) < len(asked.due(asked.rows))

    def _who(self, besides=None):
        running = [each for each in self.asks if each.state == "running" and each is not besides]
        waiting = [each.name for each in self.asks if each.state == "waiting" and each is not besides]
        used = {each.slot for each in running}
        free = [slot for slot in range(self.slots) if slot not in used]
        return {"running": [each.name for each in running], "waiting": waiting, "free": free}

    def _call(self, kind, **facts):
        if threading.get_ident() != self._thread:
            self.other_thread = True
        if kind in ("prefill", "step"):
            self._polls = 0
        if kind != "give":
            self._left_at_once.clear()
        self.calls.append({"call": kind, **facts})
        if len(self.calls) > MOST_CALLS:
            self.endless = True
            raise _Enough
        return self.calls[-1]

    def _refuse(self, call, why):
        call["error"] = f"ValueError: {why}"
        raise ValueError(why)

    def _plain(self, out):
        if isinstance(out, BaseException):
            kinds = [kind.__name__ for kind in type(out).__mro__]
            return {"raised": kinds[0], "kinds": kinds, "message": self._inside.describe(out)["message"]}
        return {name: self._inside.plain(getattr(out, name, {"missing": name})) for name in PIECE}

    # what the model says

    def _logits(self, asked, content):
        logits = self._torch.full([len(self._tokenizer)], -1e4)
        if asked is None:
            logits[self._wrong] = 1e4
        elif asked.spec["draws"]:
            generator = self._torch.Generator().manual_seed(zlib.crc32(repr(content).encode()))
            logits[self._words] = self._torch.randn(len(self._words), generator=generator)
        else:
            said = content[len(asked.prompt) :]
            right = said == asked.says[: len(said)] and len(said) < len(asked.says)
            logits[asked.says[len(said)] if right else self._wrong] = 1e4
        return logits


def _words(tokenizer, count=60):
    """Ids of tokens that are a blank and a word."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [id for word, id in vocabulary if word.startswith("Ġ") and word[1:].isalpha() and len(word) > 3][:count]


def _ids(ids):
    ids = list(ids)
    if any(type(id) is not int for id in ids):
        raise TypeError(f"ids are a list of ints, not {ids}")
    return ids


def _is_slot(slot, slots):
    return type(slot) is int and 0 <= slot < slots


def _error(name, message):
    return (getattr(builtins, name, None) or type(name, (Exception,), {}))(message)
