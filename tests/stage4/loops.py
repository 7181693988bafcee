"""How 4.1's tests say what comes in, and read what the loop did.

done = run(room, [at(0, ask("a", 5)), at(2, ask("b", 3), leave("a"))], slots=2, sent="a asks, then b")
done.calls          # what the loop did, in order: dicts, see `Surroundings` in kit/scripted_slots.py
done.asks["b"]      # what b was given, before the close and then; what its Sequence gives alone; its state
done.timeline()     # take(True) P0 give S0 give take(False) ...
"""

from course.grading.kit.scripted_slots import run_loop
from course.grading.mistakes import fail

IDLE = 10**6
"""`at(IDLE, ...)` is brought when the loop waits for it."""


def ask(name, tokens=4, *, key=..., says=None, end=0, prompt=3, like=None, fails=None, draws=False, **options):
    """Somebody asks.

    Args:
        tokens: how many words of its own the model says, before the limit ends the answer.
        key: `name`, if left out. A list becomes a tuple in the room; {} an object that equals only itself.
        says: what the model says instead, then `end`, then words until the limit.
        end: 0 or 1, the first or the second of `eos_token_ids`; 2 for the tokenizer's own, which is not one of them.
        prompt: how many ids it has.
        like: the name of another, whose prompt it has; the model says the same to both.
        fails: [an error's class, its message], for its prefill.
        draws: whether the logits say little, so that it is the Sequence that draws.
        options: over limit=tokens, or None with `says`, and temperature=0, which None leaves out.
    """
    options = {"limit": tokens if says is None else None, "temperature": 0, **options}
    if options["temperature"] is None:
        del options["temperature"]
    asked = {"name": name, "key": name if key is ... else key, "says": says, "end": end}
    return {"ask": {**asked, "prompt": prompt, "like": like, "fails": fails, "draws": draws, "options": options}}


def leave(key):
    return {"leave": key}


def at(steps, *messages):
    """What has come in when so many steps have been made; `at(3, None)` is the server's close."""
    return [steps, None if messages == (None,) else list(messages)]


def run(room, plan, *, slots=4, window=64, fails=None, sent, mistake=None):
    """Has the answer's loop run through the plan.

    Args:
        fails: {number of a step, from 1: [an error's class, its message]}.
        sent: what comes in, in a verdict's words.
        mistake: what it means that `run` raises; that it does, if left out.

    Raises:
        Mistake: `run` raises before the close, or does not come to an end.
    """
    fails = {str(step): error for step, error in (fails or {}).items()}
    done = Done(room.play(run_loop, plan=plan, slots=slots, window=window, fails=fails), sent)
    outcome = done.outcome
    if "raised" in outcome and not done.closed:
        raises = f"run raises {outcome['raised'][0]}: the loop is dead, and every answer with it"
        got = f"{outcome['said']}; calls: {done.timeline()}"
        fail(mistake or raises, **done.facts(got=got, where=outcome["where"]))
    if done.endless:
        fail("the loop makes call after call and never ends", **done.facts())
    return done


class Done:
    """What a loop did."""

    def __init__(self, played, sent):
        self.calls, self.asks, self.outcome = played["calls"], played["asks"], played["outcome"]
        self.endless, self.other_thread, self.sent = played["endless"], played["other_thread"], sent
        self.closed = any(call["call"] == "take" and call["brought"] is None for call in self.calls)

    def of(self, *kinds):
        """The calls of these kinds."""
        return [call for call in self.calls if call["call"] in kinds]

    def rounds(self):
        """The calls from each step to the next, that one included."""
        found = [[]]
        for call in self.calls:
            found[-1].append(call)
            if call["call"] == "step":
                found.append([])
        return found

    def text(self, name):
        """What an answer was given, joined."""
        return "".join(str(out.get("text") or "") for out in self.asks[name]["given"])

    def timeline(self, until=None, most=16):
        """The calls in short, up to one of them: P2 is a prefill of slot 2, S0,2 a step of slots 0 and 2."""
        calls = self.calls
        if until is not None:
            calls = calls[: next(number for number, call in enumerate(calls) if call is until) + 1]
        shown = [_short(call) for call in calls if call["call"] != "give" or call["outs"]]
        return ("… " if len(shown) > most else "") + " ".join(shown[-most:])

    def facts(self, until=None, **facts):
        """The facts of a mistake; `got` is the timeline, unless it is given."""
        return {"sent": self.sent, "got": self.timeline(until), **facts}


def _short(call):
    if call["call"] == "take":
        return "close" if call["brought"] is None else f"take({call['wait']})"
    if call["call"] == "give":
        return "give"
    letter, slots = ("P", [call["slot"]]) if call["call"] == "prefill" else ("S", call["slots"])
    return letter + ",".join(map(str, slots)) + ("!" if call["error"] else "")
