"""4.5: a Qwen2 with room for many sequences.

Two rules stand beside transformers: what a prompt gives, and on which models. All others compare the answer with
itself, the same sequence alone in a new slot model, so that each test looks at its own matter only.
"""

import contextlib
import functools
import random
import re

import torch

from course.grading.mistakes import fail, require

CLOSE = 1e-4
"""So far from transformers' logits is right; two of the answer's own may be twice as far from each other."""
SMALL = {"vocab": 40, "heads": 2, "kv_heads": 2, "tied": True, "theta": 1e4, "positions": 5200}
LONG_WINDOW, LONGEST_WINDOW = 5003, 2**17
A_FEW_HUNDRED = 1024
"""Positions for which a tensor may be made whatever the slots hold: generous for "a few hundred"."""
MATRIX_PRODUCT = re.compile(r"mm$|mm_|matmul|linear|attention|einsum|mv|dot|convolution")
FEW, MANY = 2, 16
"""So many slots a step names, to see whether it makes more products for more."""


@functools.cache
def model_of(**different):
    """A small random Qwen2ForCausalLM, the same in each process; {"vocab": None} is the tiny Qwen."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    spec = {**SMALL, **different}
    if spec["vocab"] is None:
        from course.qwen import models

        return models.tiny()[0]
    config = Qwen2Config(
        vocab_size=spec["vocab"],
        hidden_size=8 * spec["heads"],
        intermediate_size=24,
        num_hidden_layers=spec.get("layers", 2),
        num_attention_heads=spec["heads"],
        num_key_value_heads=spec["kv_heads"],
        max_position_embeddings=spec["positions"],
        tie_word_embeddings=spec["tied"],
        rope_parameters={"rope_theta": spec["theta"], "rope_type": "default"},
    )
    model = Qwen2ForCausalLM(config).eval()
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # large enough that each part of the model is seen in the logits, the biases and norms too
        for name, weight in model.named_parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=drawn) + ("norm" in name))
    model.generation_config = GenerationConfig(eos_token_id=7)
    return model


def drawn_ids(count, seed, vocab=SMALL["vocab"]):
    return random.Random(f"{count} {seed}").choices(range(vocab), k=count)


# in the room


def run(answer, inside, model, options, calls, threads=False, later=False, beside=False):
    """Makes a slot model and the calls, ["prefill", slot, ids] or ["step", slots, ids]; `threads`: each in one;
    `beside`: before each, another slot model of the same model is used.

    Each gives {"shape", "rows"}, "type" where it is no tensor, or "raised" as `inside.outcome` has it; with `later`
    also what is in the tensor after the last call.
    """
    kept, results = [], []
    made = inside.outcome(lambda: kept.append(answer.SlotModel(model_of(**model), **options)))
    if "raised" in made:
        return {"made": made, "results": []}
    slot_model = kept.pop()
    other = answer.SlotModel(model_of(**model), **options) if beside else None
    for method, which, ids in calls:
        if other:
            for slot in range(other.slots):
                other.prefill(slot, [slot + 1] * 5)
        call = functools.partial(_call, inside, slot_model, method, which, ids)
        results.append(_in_a_thread(call) if threads else call())
    for result in results:
        tensor = result.pop("tensor", None)
        if later and tensor is not None:
            result["later"] = _rows(tensor)
    return {"made": made, "results": results}


def _call(inside, slot_model, method, which, ids):
    kept = []
    which = list(which) if isinstance(which, list) else which
    outcome = inside.outcome(lambda: kept.append(getattr(slot_model, method)(which, list(ids))))
    if "raised" in outcome:
        return outcome
    if type(kept[0]) is not torch.Tensor:
        return {"type": type(kept[0]).__name__}
    return {"tensor": kept[0], "shape": list(kept[0].shape), "rows": _rows(kept[0])}


def _rows(tensor):
    """As lists of one row each; a number that JSON cannot hold is None."""
    tensor = tensor.detach().double()
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() else tensor.reshape(1, 1)
    return [[value if abs(value) < 1e30 else None for value in row] for row in rows.tolist()]


def _in_a_thread(call):
    import threading

    kept, raised = [], []

    def work():
        try:
            kept.append(call())
        except BaseException as error:  # noqa: BLE001 - also what says that it is not written
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return kept[0]


def attributes(answer, inside, eos, options):
    model, kept = model_of(), []
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, eos
    made = inside.outcome(lambda: kept.append(answer.SlotModel(model, **options)))
    model.generation_config.eos_token_id = before
    if "raised" in made:
        return {"made": made}
    found = {name: inside.plain(getattr(kept[0], name, "(missing)")) for name in ("slots", "window")}
    ids = getattr(kept[0], "eos_token_ids", "(missing)")
    found["eos_token_ids"] = {"set": sorted(ids)} if type(ids) in (set, frozenset) else inside.plain(ids)
    return {"made": made, "found": found}


def operations(answer, inside, model, options, calls):
    """seen: [[[operation's name, bytes of the largest tensor that it made, all large dimensions], ...], ...]: of the
    making, then of each call. kept: [[[bytes, large dimensions], ...], ...] of what is still there after each."""
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode

    seen, kept_by, made_by = [], [], []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            made = [each for each in _flat(result) if isinstance(each, torch.Tensor)]
            dimensions = sorted({size for each in made for size in each.shape if size > A_FEW_HUNDRED})
            largest = max((_bytes(each) for each in made), default=0)
            seen[-1].append([operation.overloadpacket.__name__, largest, dimensions])
            large = [each for each in made if each.is_floating_point() and max(each.shape, default=0) > A_FEW_HUNDRED]
            made_by.extend([StorageWeakRef(each.untyped_storage()), _bytes(each), each.shape] for each in large)
            return result

    def what_is_kept():
        there = {}
        for storage, size, shape in made_by:
            if not storage.expired():
                there.setdefault(storage.cdata, [size, set()])[1].update(each for each in shape if each > A_FEW_HUNDRED)
        made_by.clear()
        kept_by.append([[size, sorted(dimensions)] for size, dimensions in there.values()])

    model, kept, outcomes = model_of(**model), [], []
    seen.append([])
    with Watching():
        outcomes.append(inside.outcome(lambda: kept.append(answer.SlotModel(model, **options))))
    what_is_kept()
    if not kept:
        return {"outcomes": outcomes, "seen": seen, "kept": kept_by}
    for method, which, ids in calls:
        seen.append([])
        with Watching():
            outcomes.append(inside.outcome(lambda m=method, w=which, i=ids: getattr(kept[0], m)(w, i) is None))
        what_is_kept()
    return {"outcomes": outcomes, "seen": seen, "kept": kept_by}


def _flat(result):
    return result if isinstance(result, tuple | list) else [result]


def _bytes(tensor):
    try:
        return tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # one without a storage
        return tensor.numel() * tensor.element_size()


def forwards(answer, inside, calls):
    """Which `forward`s of transformers' Qwen2 run in these calls."""
    model = model_of()
    with _noted_forwards() as ran:
        kept = []
        outcomes = [inside.outcome(lambda: kept.append(answer.SlotModel(model)))]
        for method, which, ids in calls if kept else ():
            outcomes.append(inside.outcome(lambda m=method, w=which, i=ids: getattr(kept[0], m)(w, i) is None))
    return {"outcomes": outcomes, "ran": sorted(ran)}


@contextlib.contextmanager
def _noted_forwards():
    from transformers.models.qwen2 import modeling_qwen2

    ran, before = set(), {}

    def noted(kind, forward):
        @functools.wraps(forward)
        def noting(*args, **kwargs):
            ran.add(f"{kind.__name__}.forward")
            return forward(*args, **kwargs)

        return noting

    for kind in vars(modeling_qwen2).values():
        if isinstance(kind, type) and kind.__module__ == modeling_qwen2.__name__ and "forward" in vars(kind):
            before[kind] = kind.forward
            kind.forward = noted(kind, kind.forward)
    try:
        yield ran
    finally:
        for kind, forward in before.items():
            kind.forward = forward


# in the runner


def said(call):
    method, which, ids = call
    shown = f"[{', '.join(map(str, ids[:6]))}{', …' if len(ids) > 6 else ''}]"
    return f"{method}({which}, {shown})" + (f" of {len(ids)} ids" if len(ids) > 6 and method == "prefill" else "")


def results_of(room, calls, model=None, threads=False, later=False, beside=False, **options):
    """What each call gave; where one raised, the test ends."""
    how = {"threads": threads, "later": later, "beside": beside}
    played = room.play(run, model=model or {}, options=options, calls=calls, **how)
    must_have_worked([played["made"], *played["results"]], calls, options)
    return played["results"]


def must_have_worked(outcomes, calls, options=None):
    made = "SlotModel(model" + "".join(f", {name}={value}" for name, value in (options or {}).items()) + ")"
    for index, outcome in enumerate(outcomes):
        if "raised" in outcome:
            sent = made if index == 0 else said(calls[index - 1])
            what = "creating the slot model" if index == 0 else f"`{calls[index - 1][0]}`"
            fail(f"{what} raised {outcome['raised'][0]}", sent=sent, got=outcome["said"], where=outcome["where"])


def logits_of(room, calls, model=None, **options):
    """For each call the rows of logits, as float64 tensors: one for a prefill, one a slot for a step."""
    rows = []
    for call, result in zip(calls, results_of(room, calls, model, **options), strict=True):
        found = result.get("rows")
        count = 1 if call[0] == "prefill" else len(call[1])
        if not found or len(found) < count:
            got = f"of shape {tuple(result['shape'])}" if found else f"a {result.get('type')}"
            fail(f"`{call[0]}` does not return a tensor of logits", sent=said(call), got=got)
        # a prefill that gives all positions' logits is another test's matter
        rows.append(as_tensor(found[-count:]))
    return rows


def as_tensor(rows):
    return torch.tensor([[float("nan") if value is None else value for value in row] for row in rows]).double()


def far(found, expected, close=2 * CLOSE):
    """How far apart, None where they are close."""
    if found.shape != expected.shape:
        return f"{found.shape[-1]} logits, not {expected.shape[-1]}"
    difference = (found - expected).abs().max().item()
    return None if difference <= close else f"logits that differ by up to {difference:.2g}"


@functools.cache
def transformers_logits(ids, **model):
    with torch.inference_mode():
        return model_of(**model)(torch.tensor([ids])).logits[0, -1].double()


def compare_with_transformers(room, mistake, calls, options=None, **model):
    """Each call's logits are those of transformers for what the slot then holds. Steps name slots in order."""
    held = {}
    for call, rows in zip(calls, logits_of(room, calls, model, **(options or {})), strict=True):
        method, which, ids = call
        for slot, new, row in zip([which] if method == "prefill" else which, [ids], rows, strict=True):
            held[slot] = new if method == "prefill" else held[slot] + new
            if off := far(row, transformers_logits(tuple(held[slot]), **model), CLOSE):
                fail(mistake, sent=said(call), expected=f"logits within {CLOSE} of transformers' own", got=off)


def compare_with_alone(room, mistake, calls, model=None, threads=False, alone_in=None, **options):
    """Each slot's logits are what the answer gives for the same calls in a slot model of their own."""
    lives, at = [], {}
    for index, (method, which, ids) in enumerate(calls):
        for place, slot in enumerate([which] if method == "prefill" else which):
            if method == "prefill":
                at[slot] = []
                lives.append(at[slot])
            at[slot].append((index, place, ["prefill", 0, ids] if method == "prefill" else ["step", [0], [ids[place]]]))
    together = logits_of(room, calls, model, threads=threads, **options)
    for life in lives:
        alone = logits_of(room, [call for _, _, call in life], alone_in or model, slots=1)
        for (index, place, _), rows in zip(life, alone, strict=True):
            if off := far(together[index][place], rows[0]):
                before = "; ".join(said(call) for call in calls[max(index - 2, 0) : index])
                slot = calls[index][1] if calls[index][0] == "prefill" else calls[index][1][place]
                sent = said(calls[index]) + (f", after {before}" if before else "")
                fail(
                    mistake,
                    sent=sent,
                    expected=f"for slot {slot}, the same logits as for its ids alone in a new slot model",
                    got=off,
                )


def test_knows_slots_window_and_eos_token_ids(shared_room):
    for eos, options, expected in (
        (7, {}, {"slots": 16, "window": 5200, "eos_token_ids": {"set": [7]}}),
        ([9, 7], {"slots": 3, "window": 8}, {"slots": 3, "window": 8, "eos_token_ids": {"set": [7, 9]}}),
    ):
        result = shared_room.play(attributes, eos=eos, options=options)
        must_have_worked([result["made"]], [], options)
        for name, value in expected.items():
            got = result["found"][name]
            shown, got = (f"the set {each['set']}" if isinstance(each, dict) else each for each in (value, got))
            says = f"`slot_model.{name}` is wrong"
            sent = f"SlotModel with the options {options}; the generation_config's eos_token_id is {eos}"
            require(result["found"][name] == value, says, sent=sent, expected=shown, got=got)


def test_a_prompts_logits_are_transformers(shared_room):
    ids = drawn_ids(600, 1, 3072)
    calls = [["prefill", slot, ids[:count]] for slot, count in enumerate((1, 2, 30, 600))]
    says = "the logits of a prompt are not those of transformers"
    # a window of its own: what is made for the model's 8192 positions is another test's matter
    compare_with_transformers(shared_room, says, calls, {"slots": 4, "window": 640}, vocab=None)


def test_returns_logits_of_these_shapes(shared_room):
    calls = [["prefill", 1, [5, 6, 7]], ["prefill", 0, [3]], ["step", [0, 1], [4, 4]], ["step", [1], [4]]]
    for call, result in zip(calls, results_of(shared_room, calls), strict=True):
        expected = [40] if call[0] == "prefill" else [len(call[1]), 40]
        got = f"shape {tuple(result['shape'])}" if "shape" in result else result["type"]
        says = f"`{call[0]}` returns a tensor of the wrong shape"
        shape = f"a tensor of shape {tuple(expected)}"
        require(result.get("shape") == expected, says, sent=said(call), expected=shape, got=got)


def test_a_step_is_one_token_more(shared_room):
    for length, after in ((1, (1, 2, 3, 12)), (248, (1, 8, 9, 16)), (505, (1, 7, 8, 16))):
        ids = drawn_ids(length + after[-1], 2)
        calls = [["prefill", 0, ids[:length]], *(["step", [0], [id]] for id in ids[length:])]
        whole = [["prefill", slot, ids[: length + count]] for slot, count in enumerate(after)]
        found, expected = logits_of(shared_room, calls), logits_of(shared_room, whole)
        for count, rows in zip(after, expected, strict=True):
            if off := far(found[count], rows):
                fail(
                    "a step does not give the same logits as a prefill of the whole sequence",
                    sent=f"prefill(0, ids) of {length} ids, then {count} steps",
                    expected=f"the logits of prefill(0, {length + count} ids)",
                    got=off,
                )


def test_grouped_key_value_heads(shared_room):
    for heads, kv_heads in ((4, 2), (6, 1)):
        calls = [["prefill", 0, drawn_ids(9, 3)], ["step", [0], [4]]]
        says = "with fewer key-value heads than query heads, the logits are not those of transformers"
        compare_with_transformers(shared_room, says, calls, heads=heads, kv_heads=kv_heads)


def test_untied_embeddings(shared_room):
    calls = [["prefill", 0, drawn_ids(9, 4)], ["step", [0], [4]]]
    says = "with untied embeddings, the logits are not those of transformers"
    compare_with_transformers(shared_room, says, calls, tied=False)


def test_any_rope_theta(shared_room):
    calls = [["prefill", 0, drawn_ids(9, 5)], ["step", [0], [4]]]
    says = "with a different rope_theta, the logits are not those of transformers"
    for theta in (1e6, 500.0):
        compare_with_transformers(shared_room, says, calls, theta=theta)


def test_slots_do_not_disturb_each_other(shared_room):
    # each slot is filled once only: that a slot forgets is another test's matter
    drawn, filled, calls = random.Random(6), [], []
    lengths = {4: 3, 1: 40, 6: 300, 0: 1, 8: 600, 2: 2, 7: 35}
    for number in range(50):
        if len(filled) < 3 or number % 6 == 0 and len(filled) < len(lengths):
            slot = list(lengths)[len(filled)]
            filled.append(slot)
            calls.append(["prefill", slot, drawn_ids(lengths[slot], number)])
        else:
            named = sorted(drawn.sample(filled, drawn.randint(1, len(filled))))
            calls.append(["step", named, drawn_ids(len(named), number)])
    says = "the contents of other slots, or positions that were never written, affect a slot's logits"
    compare_with_alone(shared_room, says, calls, slots=9)
    calls = [["prefill", 0, [9, 3, 4]], ["prefill", 1, [8]], ["step", [0, 1], [5, 6]], ["step", [0, 1], [7, 8]]]
    says = "the contents of another SlotModel affect a slot's logits"
    compare_with_alone(shared_room, says, calls, slots=2, beside=True)


def test_slots_in_any_order(shared_room):
    calls = [["prefill", slot, drawn_ids(3 + slot, slot)] for slot in (2, 0, 3, 1)]
    for number, named in enumerate(([3, 0, 2, 1], [2, 1], [1, 3, 0], [3], [0, 3, 1, 2])):
        calls.append(["step", named, drawn_ids(len(named), number)])
    says = "a step that names its slots in a different order does not give each slot its own logits"
    compare_with_alone(shared_room, says, calls, slots=4)


def test_a_slot_that_is_used_again_forgets(shared_room):
    calls = [["prefill", 0, drawn_ids(20, 7)], ["prefill", 1, drawn_ids(300, 7)]]
    calls += [["step", [0, 1], [id, id + 1]] for id in range(4)]
    calls += [["prefill", 0, [9, 3]], ["step", [0, 1], [5, 6]], ["prefill", 1, drawn_ids(7, 8)]]
    calls += [["step", [0, 1], [id, id + 2]] for id in range(26)]
    says = "a slot that is filled again still remembers its old contents"
    compare_with_alone(shared_room, says, calls, slots=2)
    calls = [["prefill", 0, drawn_ids(8, 7)], ["prefill", 0, [9, 3]], ["step", [0], [5]], ["step", [0], [6]]]
    compare_with_alone(shared_room, "a full slot cannot be used again", calls, slots=2, window=8)


def test_up_to_the_last_position(shared_room):
    ids = drawn_ids(8, 9)
    calls = [["prefill", 2, ids], ["prefill", 0, ids[:5]], ["prefill", 1, ids[:2]]]
    calls += [["step", [0, 1], [id, id]] for id in ids[5:]]
    calls += [["step", [1], [id]] for id in ids[:3]]
    says = "near the last position of the window, the logits are wrong"
    for model, options in (({}, {"window": 8}), ({"positions": 8}, {})):
        compare_with_alone(shared_room, says, calls, model, alone_in=SMALL, slots=3, **options)
    calls = [["prefill", 0, drawn_ids(296, 9)], *(["step", [0], [id]] for id in range(4))]
    compare_with_alone(shared_room, says, calls, alone_in=SMALL, slots=2, window=300)


def test_what_was_returned_stays_as_it_is(shared_room):
    calls = [["prefill", 0, [5, 6, 7]], ["prefill", 1, [8]]]
    calls += [["step", [0, 1], [id, id]] for id in range(3)]
    calls += [["step", [1, 0], [4, 9]], ["prefill", 1, [3, 4]]]
    for call, result in zip(calls, results_of(shared_room, calls, later=True), strict=True):
        same = result.get("rows") == result.get("later")
        require(same, "a later call changes a tensor that was returned earlier", sent=said(call))


def test_from_any_thread(shared_room):
    calls = [["prefill", 0, [5, 6, 7]], ["prefill", 1, [8]], *(["step", [0, 1], [id, id]] for id in range(3))]
    says = "calls from different threads give different logits"
    compare_with_alone(shared_room, says, calls, threads=True, slots=2)


WRONG = [
    ("an unknown slot", ["prefill", 4, [1]]),
    ("a slot below 0", ["prefill", -1, [1]]),
    ("a prefill with no ids", ["prefill", 1, []]),
    ("a prefill with no ids", ["prefill", 3, []]),
    ("a prefill with more ids than fit in the window", ["prefill", 1, [1] * 9]),
    ("a prefill with more ids than fit in the window", ["prefill", 3, [1] * 9]),
    ("an unknown slot", ["step", [0, 4], [1, 1]]),
    ("a slot below 0", ["step", [0, -4], [1, 1]]),
    ("a slot that is named twice", ["step", [1, 0, 1], [1, 1, 1]]),
    ("a slot that was never filled", ["step", [0, 3], [1, 1]]),
    ("a slot that is full", ["step", [1, 2], [1, 1]]),
]
"""Of four slots with a window of 8: 0 and 1 have room, 2 is full, 3 was never filled."""
FILLED = [["prefill", 2, [9, 8, 7, 6, 5, 4, 3]], ["prefill", 0, [1, 2, 3]], ["prefill", 1, [4]], ["step", [2], [2]]]


def refused(room, *calls):
    """What each of these calls gave, and those behind them, in slots that are FILLED."""
    calls = [*FILLED, *calls]
    played = room.play(run, model={}, options={"slots": 4, "window": 8}, calls=calls)
    must_have_worked([played["made"], *played["results"][: len(FILLED)]], calls)
    return played["results"][len(FILLED) :]


def test_what_cannot_be_is_a_value_error(shared_room):
    for (what, call), found in zip(WRONG, refused(shared_room, *(call for _, call in WRONG)), strict=True):
        says = f"{what} does not raise ValueError"
        if "raised" not in found:
            fail(says, sent=said(call), expected="a ValueError", got="none")
        if "ValueError" not in found["raised"]:
            fail(says, sent=said(call), expected="a ValueError", got=found["said"], where=found["where"])


def test_a_refused_call_changes_nothing(shared_room):
    after = [["step", [0, 1], [5, 6]], ["step", [1], [7]], ["step", [0, 1], [8, 9]]]
    expected = refused(shared_room, *after)
    must_have_worked([{}, *expected], after)
    # that each raises is another test's matter
    each_alone = [(what, call) for what, call in WRONG if "raised" in refused(shared_room, call)[0]]
    found = refused(shared_room, *(call for _, call in each_alone), *after)[len(each_alone) :]
    if found != expected:
        for what, call in each_alone:
            says = f"a call that is refused because of {what} changes a slot"
            for each, mine, other in zip(after, refused(shared_room, call, *after)[1:], expected, strict=True):
                if "raised" in mine:
                    fail(says, sent=f"{said(call)}, {said(each)}", got=mine["said"], where=mine["where"])
                if off := far(as_tensor(mine["rows"]), as_tensor(other["rows"])):
                    fail(says, sent=f"{said(call)}, {said(each)}", got=off)
    # one that only failed to be filled was not filled
    step = ["step", [3], [1]]
    for call in (["prefill", 3, []], ["prefill", 3, [1] * 9]):
        if ["raised" in result for result in refused(shared_room, step, call, step)] == [True, True, False]:
            fail("a refused prefill fills the slot", sent=f"{said(call)}, {said(step)}", expected="a ValueError")


def test_a_step_is_one_pass(shared_room):
    counts = {}
    for count in (FEW, MANY):
        calls = [["prefill", slot, drawn_ids(slot + 2, slot)] for slot in range(count)]
        calls.append(["step", list(range(count)), [5] * count])
        result = shared_room.play(operations, model={}, options={"slots": MANY}, calls=calls)
        must_have_worked(result["outcomes"], calls)
        counts[count] = sum(bool(MATRIX_PRODUCT.search(name)) for name, *_ in result["seen"][-1])
    # an attention may be made in another way for more slots, but not with one product more for each of them
    require(
        counts[MANY] - counts[FEW] < MANY - FEW,
        "a step computes more matrix products when it is given more slots",
        sent=f"a step for {FEW} slots, and one for {MANY}",
        expected=f"the same number of matrix products in both: {counts[FEW]}",
        got=counts[MANY],
    )


def test_memory_is_taken_as_it_is_used(shared_room):
    ids = drawn_ids(1500, 10)
    calls = [["prefill", 0, ids[:5]], ["step", [0], [1]], ["prefill", 0, ids[:600]], ["prefill", 0, ids[:1020]]]
    calls += [*(["step", [0], [id]] for id in ids[:8]), ["prefill", 0, ids]]
    require_little_memory(shared_room, LONG_WINDOW, calls)
    calls = [["prefill", 0, ids[:5]], ["step", [0], [1]], ["prefill", 0, ids[:500]]]
    require_little_memory(shared_room, LONGEST_WINDOW, calls + [["step", [0], [id]] for id in ids[:30]])


def require_little_memory(shared_room, window, calls):
    # keys and values of one position are 16 numbers in this model, its largest weight has 640
    model = {"heads": 2, "kv_heads": 1, "layers": 1, "positions": window}
    result = shared_room.play(operations, model=model, options={"slots": 1}, calls=calls)
    must_have_worked(result["outcomes"], calls, {"slots": 1})
    held = 0
    for index, seen in enumerate(result["seen"]):
        call = calls[index - 1] if index else None
        if call:
            held = len(call[2]) if call[0] == "prefill" else held + 1
        allowed = 4 * 16 * max(2 * held, A_FEW_HUNDRED)
        if call and call[0] == "prefill":
            allowed = max(allowed, 8 * 2 * held * 2 * held)  # what attention makes of all pairs of positions
        sent = f"{said(call)}: the slot then has {held} positions" if call else "SlotModel(model, slots=1)"
        require(
            not any(window in dimensions for _, _, dimensions in seen),
            "a tensor is created for the whole window, although little of it is used",
            sent=sent,
            expected="tensors for at most twice as many positions as the slot has, or for a few hundred positions",
            got=f"a tensor with a dimension of {window:,}",
        )
        largest = max((size for _, size, _ in seen), default=0)
        require(
            largest <= allowed,
            "a tensor is created for far more positions than the fullest slot has",
            sent=sent,
            expected="tensors for at most twice as many positions as the slot has, or for a few hundred positions",
            got=f"a tensor of {largest:,} bytes, although the keys and values of one position take 64 bytes",
        )
        positions = positions_kept(result["kept"][index])
        require(
            positions <= max(2 * held, A_FEW_HUNDRED),
            "a tensor is created for far more positions than the fullest slot has",
            sent=sent,
            expected="tensors for at most twice as many positions as the slot has, or for a few hundred positions",
            got=f"keys and values for {positions:,} positions",
        )


def positions_kept(kept):
    """For how many positions there are keys and values: in a tensor of both, 64 bytes a position, or in two of 32."""
    both, each = ([n for size, large in kept for n in large if size == n * width] for width in (64, 32))
    return max(both + sorted(each)[-2:-1], default=0)


def test_no_forward_of_transformers(shared_room):
    calls = [["prefill", 0, [5, 6, 7]], ["prefill", 1, [8]], ["step", [0, 1], [4, 4]]]
    result = shared_room.play(forwards, calls=calls)
    must_have_worked(result["outcomes"], calls)
    says = "one of transformers' own `forward` methods runs"
    require(
        result["ran"] == [], says, expected="your own code, using the model's weights", got=", ".join(result["ran"])
    )
