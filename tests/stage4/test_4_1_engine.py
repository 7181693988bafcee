"""4.1: the loop runs between a scripted slot model, a scripted `take` and `give`, in one thread: see loops.py.

Each test reads the record of all calls, and looks at its own matter only.

Not covered: errors in `take`, `give` or `Sequence.take`; how often `give` is called, and in which order for several
keys; more calls of `take(False)` while something runs; whether what is refused is told at its coming or at its turn,
and what it gets at the close; whether one that is refused, and leaves in the same list, is told when its ask is read;
whether a prefill that fails is one of the round's four.
"""

from loops import IDLE, ask, at, leave, run

from course.grading.mistakes import fail, require

MANY = 150
"""Who ask at once: a hundred and more have to wait."""


# what the tests share


def says_as_alone(done, *names, mistake):
    """The text of each of these is what its Sequence says alone. How it is cut is another test's matter."""
    for name in names:
        each = done.asks[name]
        expected = "".join(out["text"] for out in each["alone"])
        if done.text(name) != expected:
            errors = [out for out in each["given"] if "raised" in out]
            got = f"{errors[0]['raised']}: {errors[0]['message']}" if errors else repr(done.text(name))
            fail(
                mistake,
                sent=f"{done.sent}; the request in question is {name}",
                expected=repr(expected),
                got=f"{got}; calls: {shown(done)}",
            )


def gets_its_answer(done, *names, mistake):
    """Each of these is given a piece for each token that has text, once and in order. What the pieces say, and whether
    the last one is missing, is another test's matter."""
    for name in names:
        alone = done.asks[name]["alone"]
        if "raised" in alone[-1]:
            continue  # it was in a call that fails
        # where a key has come again, a piece of its first answer is another test's matter
        own = [
            out for out in done.asks[name]["given"] if out.get("prompt_tokens", ...) in (..., alone[0]["prompt_tokens"])
        ]
        numbers = [out.get("completion_tokens", said(out)) for out in own if out.get("text") or "raised" in out]
        expected = [out["completion_tokens"] for out in alone if out["text"]]
        require(
            numbers in (expected, expected[:-1]) and (numbers != [] or len(expected) < 2),
            mistake,
            sent=f"{done.sent}; the request in question is {name}",
            expected=f"one piece for each of its tokens {expected}",
            got=f"{numbers}; calls: {shown(done)}",
        )


def shown(done):
    return done.timeline(most=24)


def gets_its_error(done, name, mistake):
    """It is given its error, with type and message, and nothing else."""
    given, expected = done.asks[name]["given"], done.asks[name]["alone"][-1]
    if "raised" not in expected:
        return  # it was not in the call that fails
    errors = [out for out in given if "raised" in out]
    facts = {"sent": f"{done.sent}; the request in question is {name}", "expected": said(expected)}
    got = "; ".join(map(said, given[-3:])) or "nothing"
    require(bool(errors), mistake, **facts, got=f"{got}; calls: {shown(done)}")
    require(
        errors[0]["raised"] == expected["raised"] and expected["message"] in (None, errors[0]["message"]),
        "an error does not arrive with its own type and message",
        **facts,
        got=said(errors[0]),
    )
    require(len(errors) == 1, "an error is delivered twice", **facts, got=got)
    require(given[-1] == errors[0], "something is delivered after an answer's error", **facts, got=got)


def said(out):
    if "raised" in out:
        return f"{out['raised']}: {out['message']}" if out["message"] else out["raised"]
    return f"{out['text']!r}" + (f" ({out['finish_reason']})" if out.get("finish_reason") else "")


def no_slot_idle(done, mistake):
    """Before no step somebody waits whom a prefill of that round could have served."""
    prefills = 0
    for call in done.calls:
        if call["call"] == "prefill":
            prefills += 1
        elif call["call"] == "step":
            served = not call["waiting"] or not call["free"] or prefills >= 4
            waits = f"slot {call['free'][:1]} is free, but {', '.join(call['waiting'])} must wait"
            require(
                served,
                mistake,
                **done.facts(call, expected="a prefill before this step", got=f"{waits}: {done.timeline(call)}"),
            )
            prefills = 0


def is_not_run_again(done, name, mistake, most=0):
    """At most so many calls carry that answer once it has left or ended."""
    again = 0
    for call in done.calls:
        again += call["call"] == "step" and any(each.startswith(f"{name} (") for each in call["extra"])
        again += call["call"] == "prefill" and call["ask"] == name and call["state"] != "waiting"
        require(again <= most, mistake, **done.facts(call, sent=f"{done.sent}; the request in question is {name}"))


def nothing_is_given(done, name, mistake, closed=False):
    for call in done.of("give"):
        late = f"{name} (left)" in call["outs"] and call["closed"] == closed
        require(not late, mistake, **done.facts(call, sent=f"{done.sent}; the request in question is {name}"))


# one answer


def test_an_answer_says_what_its_sequence_says(shared_room):
    done = run(shared_room, [at(0, ask("a", 5))], sent="a asks for 5 tokens")
    for call in done.of("give"):
        mistake = "give does not get a list of (key, piece) pairs"
        require(None not in call["outs"], mistake, sent=done.sent, expected="[('a', Piece(...)), ...]")
    require(bool(done.asks["a"]["given"]), "an answer gets nothing", **done.facts())
    for out in done.asks["a"]["given"]:
        kinds = "raised" in out or all(type(out[name]) in (str, int, type(None)) for name in out)
        require(
            kinds,
            "what is passed to give is not a Piece",
            sent=done.sent,
            expected="the piece that `take` returned",
            got=out,
        )
    says_as_alone(done, "a", mistake="an answer is not what its Sequence produces")


def test_the_last_piece_is_given_even_without_text(shared_room):
    # the second token of " 龘" has no text
    plan = [at(0, ask("a", 3), ask("b", says=" 龘", limit=2))]
    done = run(shared_room, plan, sent="a and b end at their limits, b in the middle of a character")
    for name, reason in (("a", "length"), ("b", "length")):
        given = done.asks[name]["given"]
        require(
            bool(given) and given[-1].get("finish_reason") == reason,
            "the last piece, which says why the answer ended, is not delivered",
            sent=f"{done.sent}; the request in question is {name}",
            expected=said(done.asks[name]["alone"][-1]),
            got=said(given[-1]) if given else "nothing",
        )
        ends = [out for out in given if out.get("finish_reason")]
        require(len(ends) == 1, "an answer ends twice", **done.facts(got="; ".join(map(said, given))))


def test_pieces_without_text_are_not_given(shared_room):
    # each of these characters is three tokens
    done = run(
        shared_room, [at(0, ask("a", says="one 龘 two 龖"))], sent="the model says 'one 龘 two 龖', token by token"
    )
    empty = [out for out in done.asks["a"]["given"] if out.get("text") == "" and not out.get("finish_reason")]
    require(
        not empty,
        "a piece without text is delivered",
        sent=done.sent,
        expected="only the last piece may have no text",
        got=f"{len(empty)} without text",
    )


def test_each_piece_is_given_as_it_is(shared_room):
    done = run(shared_room, [at(0, ask("a", says="one two 龘 three"), ask("b", 4, prompt=5))], sent="a and b ask")
    for name in "ab":
        # without the pieces that another test is about
        given = [out for out in done.asks[name]["given"] if out.get("text") or out.get("finish_reason")]
        pairs = zip([out for out in done.asks[name]["alone"] if out["text"]], given, strict=False)
        for number, (expected, got) in enumerate(pairs, 1):
            require(
                got == expected,
                "a piece is changed before it is delivered",
                sent=f"{done.sent}; the piece in question is piece {number} of {name}",
                expected=expected,
                got=got,
            )


# rounds


def test_one_step_carries_all_that_run(shared_room):
    few = [at(0, ask("a", 9), ask("b", 5), ask("c", 7)), at(3, ask("d", 4))]
    many = [at(0, *[ask(name, 9) for name in "abcdefghijklmnopqrst"])]
    for plan, sent in ((few, "a, b and c ask at once, and d after three steps"), (many, "twenty requests ask at once")):
        done = run(shared_room, plan, slots=20, sent=sent)
        for call in done.of("step"):
            expected = f"one step for {', '.join(call['running'])}"
            mistake = "a step leaves out a running answer"
            require(not call["missing"], mistake, **done.facts(call, expected=expected))


def test_an_answer_that_has_ended_takes_no_more_steps(shared_room):
    plan = [at(0, ask("a", 2), ask("b", 8), ask("c", 3), ask("d", 1))]
    done = run(shared_room, plan, sent="a ends after 2 tokens, c after 3, d after 1, and b after 8")
    for call in done.of("step"):
        ended = [each for each in call["extra"] if "(ended)" in each]
        require(
            not ended,
            "a step includes an answer that has ended",
            **done.facts(call, expected="only b in the last steps"),
        )


def test_newcomers_join_while_others_run(shared_room):
    plan = [at(0, ask("a", 12)), at(3, ask("b", 3)), at(5, ask("c", 2))]
    done = run(shared_room, plan, sent="a asks for 12 tokens; b asks after three steps, and c after five")
    for name in "bc":
        began = [call for call in done.of("prefill") if call["ask"] == name and "a" in call["running"]]
        require(bool(began), "a newcomer waits until the running answers have ended", **done.facts(got=shown(done)))


def test_between_two_steps_new_arrivals_are_taken(shared_room):
    for slots in (4, 2):
        sent = f"a asks for 7 tokens and b for 5, with {slots} slots"
        done = run(shared_room, [at(0, ask("a", 7), ask("b", 5))], slots=slots, sent=sent)
        for calls in done.rounds()[1:-1]:
            kinds = [call["call"] for call in calls]
            mistake = "between steps, the loop does not check who has arrived and who has left"
            require("take" in kinds, mistake, **done.facts(calls[-1], expected="a take before each step"))


def test_at_most_four_prefills_between_two_steps(shared_room):
    six = [ask(name, 4) for name in "bcdefg"]
    while_a_runs = [at(0, ask("a", 9)), at(2, *six)]
    for plan, sent in (
        (while_a_runs, "a runs, and six requests arrive at once"),
        ([at(0, *six)], "six requests arrive at once"),
    ):
        done = run(shared_room, plan, slots=8, sent=sent)
        for calls in done.rounds():
            prefills = [call for call in calls if call["call"] == "prefill" and not call["error"]]
            if len(prefills) > 4 and prefills[4]["running"]:
                fail(
                    "more than four newcomers are admitted between two steps: all running answers wait for them",
                    **done.facts(prefills[-1], expected="four prefills, then a step, then the other prefills"),
                )


def test_at_most_four_prefills_in_a_round_without_a_step(shared_room):
    six = [ask(name, 1) for name in "abcdef"]
    done = run(shared_room, [at(0, *six)], slots=8, sent="six requests arrive at once and ask for one token each")
    prefills = 0
    for call in done.calls:
        prefills = 0 if call["call"] == "take" else prefills + (call["call"] == "prefill")
        mistake = "more than four newcomers are admitted in one round"
        require(
            prefills <= 4, mistake, **done.facts(call, expected="four prefills, then a take, then the other prefills")
        )


def test_no_newcomer_waits_while_a_slot_is_free(shared_room):
    some = [at(0, ask("a", 9), ask("b", 9)), at(1, *[ask(name, 4) for name in "cdefgh"])]
    many = [at(0, *[ask(name, 9) for name in "abcdefghijklmnopqrst"])]
    long = [at(0, *[ask(name, 4, prompt=2500) for name in "abcdef"])]
    for plan, slots, sent in (
        (some, 7, "a and b run, then six requests arrive at once"),
        (many, 20, "twenty requests arrive at once"),
        (long, 6, "six requests arrive at once, with prompts of 2500 ids"),
    ):
        done = run(shared_room, plan, slots=slots, window=5200, sent=f"{sent}; {slots} slots")
        no_slot_idle(done, "a newcomer waits although a slot is free and a round may have up to four prefills")


def test_where_nothing_runs_there_is_no_step(shared_room):
    done = run(
        shared_room,
        [at(0, *[ask(name, 1) for name in "abcde"])],
        sent="five requests arrive and ask for one token each",
    )
    for call in done.of("step"):
        fail("step is called although nothing is running", **done.facts(call, expected="prefills only"))


def test_what_is_made_is_given_at_once(shared_room):
    plan = [at(0, ask("a", 6), ask("b", 3), ask("c", 1)), at(2, ask("d", 3))]
    failing = ask("b", fails=["OutOfMemory", "no room for b"])
    later = at(IDLE, ask("e", 2))
    for done in (
        run(shared_room, plan, slots=3, sent="a, b, c and d ask"),
        run(shared_room, [at(0, ask("a", 6), failing)], slots=3, sent="a and b ask; b's prefill fails"),
        run(
            shared_room, [at(0, ask("a", 6)), later], fails={2: ["OSError", "no"]}, sent="a asks; its second step fails"
        ),
        run(shared_room, [at(0, ask("a", 1)), later], sent="a asks alone, for one token"),
        run(
            shared_room, [at(0, ask("a", prompt=64)), later], sent="a asks alone, with a prompt too long for the window"
        ),
        run(shared_room, [at(0, failing), later], sent="b asks alone; its prefill fails"),
    ):
        for call in done.of("take", "step"):
            # what is never given is another test's matter
            late = [name for name in call["owed"] if len(done.asks[name]["given"]) >= due(done, name)]
            before = "take" if call["call"] == "take" else "step"
            expected = f"the results so far, including errors, are given to {', '.join(late)}"
            mistake = f"the results so far are not delivered before the next {before}"
            require(not late, mistake, **done.facts(call, expected=expected))


def due(done, name):
    return sum(out is not None for out in done.asks[name]["alone"])


def test_take_waits_only_when_nothing_runs_or_waits(shared_room):
    plans = [
        ([at(0, ask("a", 4), ask("b", 2)), at(2, ask("c", 3))], "a, b and c run"),
        (
            [at(0, *[ask(name, 1) for name in "abcdef"])],
            "six requests arrive, for one token each: after four prefills, two of them wait",
        ),
    ]
    for plan, sent in plans:
        done = run(shared_room, plan, sent=sent)
        for call in done.of("take"):
            mistake = (
                "take(True) is called while answers are running or waiting: they stop until another request arrives"
            )
            require(not call["wait"] or call["idle"] is not False, mistake, **done.facts(call))


def test_take_waits_when_nothing_runs_or_waits(shared_room):
    plan = [at(IDLE, ask("a", 2)), at(IDLE, ask("b", 1)), at(IDLE, ask("c", 2))]
    done = run(shared_room, plan, sent="a asks; b asks when a has ended; later, c asks")
    polls = 0
    for call in done.calls:
        polls = polls + 1 if call["call"] == "take" and not call["wait"] and call["idle"] is True else 0
        mistake = (
            "take(False) is called again and again while nothing is running or waiting:"
            " that keeps a core busy for nothing"
        )
        require(polls < 3, mistake, **done.facts(call, expected="take(True)"))


def test_the_loop_goes_on_when_nothing_runs(shared_room):
    plan = [at(0, ask("a", 2)), at(IDLE, ask("b", 3)), at(IDLE, ask("c", 2))]
    done = run(
        shared_room, plan, sent="a asks; b asks when a has ended, and c when b has ended; then the server closes"
    )
    closed = [call for call in done.of("take") if call["brought"] is None]
    require(
        bool(closed),
        "run returns before take has returned None",
        **done.facts(expected="take(True), to wait for the next request"),
    )
    gets_its_answer(done, *"abc", mistake="a request that arrives after a pause does not get its answer")


# slots


def test_the_lowest_free_slot_is_taken(shared_room):
    # slots are freed in the order 2, 1, 3, 0
    plan = [at(0, ask("a", 9), ask("b", 5), ask("c", 3), ask("d", 6)), at(7, *[ask(name, 6) for name in "efg"])]
    plan += [at(10, ask("h", 2), ask("i", 2))]
    lowest(run(shared_room, plan, slots=6, sent="a to d ask; e to i ask later, when slots are free again"))
    four = at(0, *[ask(name, 6) for name in "abcd"])
    plan = [four, at(2, leave("c"), leave("a"), ask("e"))]
    lowest(run(shared_room, plan, slots=6, sent="a to d; then c and a leave, and e arrives"))
    broken = ["RuntimeError", "no bread"]
    plan = [four, at(2, ask("e"))]
    lowest(run(shared_room, plan, slots=6, fails={2: broken}, sent="a to d; the second step fails, and e arrives"))
    plan = [at(0, ask("a", 1), ask("b", 3))]
    lowest(run(shared_room, plan, slots=6, sent="a, which ends with its first token, and b"))
    plan = [at(0, ask("a", fails=broken), ask("b", 3))]
    lowest(run(shared_room, plan, slots=6, sent="a, whose prefill fails, and b"))


def lowest(done):
    for call in done.of("prefill"):
        require(
            call["slot"] == min(call["free"], default=None),
            "a newcomer does not get the lowest free slot",
            **done.facts(
                call, expected=f"slot {call['free'][0] if call['free'] else 'none'} (free slots: {call['free']})"
            ),
        )


def test_no_slot_is_used_twice_at_once(shared_room):
    plan = [at(0, *[ask(name, 5) for name in "abcde"]), at(2, leave("b"), ask("f", 4)), at(4, ask("g", 3), ask("h", 9))]
    for slots in (1, 3, 5):
        done = run(shared_room, plan, slots=slots, sent=f"eight requests ask, with slots={slots}")
        for call in done.of("prefill"):
            mistake = "a newcomer is put into a slot with a running answer"
            require(call["over"] is None, mistake, **done.facts(call))
            broken = str(call["error"]).startswith("ValueError: prefill")
            require(not broken, "a newcomer is put into a slot that does not exist", **done.facts(call))


def test_first_come_first_served(shared_room):
    plan = [at(0, *[ask(name, 4, prompt=length) for name, length in zip("dacbfe", (9, 3, 7, 5, 2, 8), strict=True)])]
    plan += [at(2, ask("z", 2)), at(4, ask("y", 3), ask("x", 2))]
    done = run(
        shared_room,
        plan,
        slots=2,
        sent="d, a, c, b, f and e arrive at once, in this order; later, z; still later, y and x; two slots",
    )
    in_order(done, "dacbfezyx", "the request that arrived first is not served first")
    plan = [at(0, *[ask(name, 3) for name in "abcdef"]), at(1, leave("c"))]
    done = run(shared_room, plan, slots=1, sent="a to f arrive at once; c leaves while it waits; one slot")
    in_order(done, "abdef", "a request that leaves while it waits changes the order of the others")


def in_order(done, names, mistake):
    began = [call["ask"] for call in done.of("prefill") if call["ask"] in names]
    require(began == list(names)[: len(began)], mistake, sent=done.sent, expected=" ".join(names), got=began)


def test_all_who_wait_get_their_turn(shared_room):
    for count, tokens, slots in ((11, 3, 1), (11, 3, 2), (MANY, 2, 2)):
        names = [f"a{number}" for number in range(count)]
        plan = [at(0, *[ask(name, tokens) for name in names])]
        done = run(shared_room, plan, slots=slots, sent=f"{count} requests ask at once, with slots={slots}")
        gets_its_answer(done, *names, mistake="a request that had to wait for a slot does not get its answer")


def test_a_slot_is_free_as_soon_as_its_answer_has_ended(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 3), ask("c", 3), ask("d", 3))]
    done = run(shared_room, plan, slots=2, sent="a, b, c and d ask, with two slots: c and d wait, and b ends first")
    no_slot_idle(done, "a slot whose answer has ended is not used for the next waiting request")


def test_a_slot_freed_in_a_round_is_used_in_that_round(shared_room):
    plan = [at(0, ask("a", 9)), at(1, ask("b", 1), ask("c", 1), ask("d", 4))]
    done = run(shared_room, plan, slots=2, sent="a runs; b, c and d arrive; b and c ask for one token each; two slots")
    no_slot_idle(done, "a slot that is freed in one round is used only in the next")


def test_sixteen_answers_cost_16_prefills_and_at_most_34_steps(shared_room):
    asks = [ask(f"a{number}", 32) for number in range(16)]
    done = run(shared_room, [at(0, *asks)], slots=16, sent="sixteen requests ask at once, for 32 tokens each")
    prefills, steps = len(done.of("prefill")), len(done.of("step"))
    require(
        prefills == 16 and steps <= 34,
        "sixteen answers of 32 tokens take too many calls",
        **done.facts(expected="16 prefills and at most 34 steps", got=f"{prefills} prefills and {steps} steps"),
    )


# each as alone


def test_answers_at_once_do_not_mix(shared_room):
    plan = [at(0, ask("a", 12), ask("b", 2), ask("c", says="one two three", limit=4)), at(2, ask("d", 6), ask("e", 2))]
    plan += [at(4, ask("f", says="服务 龘 token", limit=6), leave("d"), ask("g", 5))]
    done = run(shared_room, plan, slots=3, sent="seven requests ask, some of them while others run, with three slots")
    says_as_alone(done, *"abcefg", mistake="an answer is not the same as when it runs alone")


def test_equal_prompts_are_answers_of_their_own(shared_room):
    mistake = "requests with the same prompt do not each get their own answer"
    for drawn in ({}, {"draws": True, "temperature": 1.0}):
        seeds = [{"seed": seed} if drawn else {} for seed in (7, 7, 8, 7, 9)]
        asks = [ask("a", 8, **drawn, **seeds[0])]
        for name, tokens, seed in zip("bcde", (8, 3, 6, 9), seeds[1:], strict=True):
            asks.append(ask(name, tokens, like="a", **drawn, **seed))
        sent = "a, b and c ask with the same prompt; later, d and e ask with it, too"
        done = run(shared_room, [at(0, *asks[:3]), at(4, *asks[3:])], sent=sent, mistake=mistake)
        says_as_alone(done, *"abcde", mistake=mistake)


def test_seeded_answers_are_what_they_are_alone(shared_room):
    drawn = {"draws": True, "temperature": 1.0}
    plan = [at(0, *[ask(name, 8, seed=seed, **drawn) for name, seed in zip("abcd", (7, 0, 7, 2**32 - 1), strict=True)])]
    plan += [at(3, ask("e", 6, seed=0, **drawn), ask("f", 6, **drawn)), at(5, ask("g", 5, seed=1, **drawn))]
    done = run(
        shared_room,
        plan,
        slots=6,
        sent="requests with the seeds 7, 0, 7 and 2**32 - 1 ask at once;"
        " later, one with seed 0, one without a seed, and one with seed 1",
    )
    says_as_alone(done, *"abcdeg", mistake="the tokens drawn with a seed depend on what else is running")


def test_without_a_seed_each_draws_anew(shared_room):
    asks = [ask(name, 12, draws=True, temperature=None) for name in "ab"]
    first = run(shared_room, [at(0, *asks)], sent="a and b ask without a seed")
    again = run(shared_room, [at(0, *asks)], sent="a and b ask without a seed, twice")
    for name in "ab":
        mistake = "without a seed, an answer draws the same tokens again"
        require(first.text(name) != again.text(name), mistake, sent=again.sent, got=first.text(name))


def test_the_options_reach_the_sequence(shared_room):
    plan = [at(0, ask("a", says="one two three four", stop=["three"]), ask("b", says="one two three four", limit=2))]
    plan += [at(1, ask("c", 8, draws=True, temperature=0.7, top_p=0.4, seed=3))]
    done = run(shared_room, plan, sent="a asks with stop, b with limit, and c with temperature, top_p and seed")
    says_as_alone(done, *"abc", mistake="not all options reach the Sequence")
    done = run(shared_room, [at(0, ask("a", 8, draws=True))], sent="a asks with a temperature of 0")
    says_as_alone(
        done, "a", mistake="a temperature of 0 does not reach the Sequence: 0 is not the same as leaving it out"
    )


def test_each_end_of_the_slot_model_ends_an_answer(shared_room):
    plan = [at(0, *[ask(name, says="one two", end=end, limit=9) for end, name in enumerate("abc")])]
    done = run(
        shared_room,
        plan,
        sent="eos_token_ids has two ids: a says the first, b the second, c the tokenizer's own end token",
    )
    says_as_alone(done, *"abc", mistake="the tokens that end an answer are not those in `eos_token_ids`")
    for name in "ab":
        last = done.asks[name]["given"][-1]
        mistake = "the last piece of an answer that ends with an end token is not delivered"
        require(last.get("finish_reason") == "stop", mistake, **done.facts(got=said(last)))


def test_the_limit_is_cut_to_what_is_left_of_the_window(shared_room):
    lengths = {"a": (12, None), "b": (12, 50), "c": (12, 8), "d": (12, 7), "e": (19, None), "f": (1, None)}
    plan = [at(0, *[ask(name, prompt=prompt, limit=limit) for name, (prompt, limit) in lengths.items()])]
    done = run(
        shared_room,
        plan,
        slots=6,
        window=20,
        sent="the window is 20; the length and limit of each prompt: " + str(list(lengths.values())),
    )
    says_as_alone(done, *lengths, mistake="the limit is not reduced to what is left of the window")


def test_a_prompt_that_fills_the_window_is_refused(shared_room):
    plan = [at(0, ask("a", 4), ask("b", prompt=20), ask("c", 3)), at(2, ask("d", prompt=31))]
    done = run(shared_room, plan, window=20, sent="the window is 20; prompts of 3, 20 and 3 ids arrive, then one of 31")
    for name, length in (("b", 20), ("d", 31)):
        mistake = "a prompt that fills the window is not refused"
        gets_its_error(done, name, mistake)
        message = done.asks[name]["given"][-1]["message"]
        both = "20" in message and str(length) in message
        mistake = "the error for a prompt that fills the window does not contain both its length and the window's"
        require(both, mistake, sent=done.sent, expected=f"{length} and 20", got=message)
    for call in done.of("prefill"):
        mistake = "the slot model is called for a refused request"
        require(call["ask"] not in ("b", "d"), mistake, **done.facts(call))
    gets_its_answer(done, *"ac", mistake="a refused request affects the others")


def test_what_the_sequence_refuses_reaches_its_asker(shared_room):
    plan = [at(0, ask("a", 5), ask("b", no_such_option=1)), at(2, ask("c", seed="seven"), ask("d", 3))]
    done = run(shared_room, plan, sent="b asks with an option that Sequence does not have, and c with seed='seven'")
    for name in "bc":
        gets_its_error(done, name, "when `Sequence` refuses a request, that request never gets the error")
    for call in done.of("prefill"):
        require(call["ask"] not in ("b", "c"), "the slot model is called for a refused request", **done.facts(call))
    gets_its_answer(done, *"ad", mistake="a refused request affects the others")


def test_what_is_refused_keeps_no_slot(shared_room):
    refused = [ask("r", prompt=64), ask("s", prompt=70), ask("t", no_such_option=1)]
    for plan in ([at(0, *refused, ask("a"), ask("b"))], [at(0, ask("a", 3)), at(IDLE, *refused), at(IDLE, ask("b"))]):
        done = run(
            shared_room, plan, slots=2, sent="r, s and t ask and are refused; a and b ask and are not; two slots"
        )
        gets_its_answer(done, *"ab", mistake="a refused request keeps a slot")


def test_what_is_refused_is_none_of_the_four(shared_room):
    refused = [ask(f"r{number}", prompt=64 + number) for number in range(5)]
    plan = [at(0, ask("a", 9)), at(2, *refused[:3], ask("b"), ask("c"), *refused[3:], ask("d"), ask("e"))]
    done = run(
        shared_room,
        plan,
        slots=6,
        sent="a runs; nine requests arrive at once, five of them with prompts too long for the window",
    )
    no_slot_idle(done, "a refused request counts as one of the four prefills")


# leaving


def test_who_leaves_is_not_stepped_again(shared_room):
    done = run(
        shared_room,
        [at(0, ask("a", 9), ask("b", 9), ask("c", 9)), at(3, leave("b"))],
        sent="a, b and c ask; b leaves after 3 steps",
    )
    is_not_run_again(done, "b", "a call includes an answer whose reader has left")


def test_who_leaves_is_given_nothing_more(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 9)), at(3, leave("b")), at(5, leave("a")), at(IDLE, ask("c", 2))]
    done = run(shared_room, plan, slots=1, sent="a runs, b waits; b leaves after 3 steps, a after 5")
    for name in "ab":
        nothing_is_given(done, name, "something is delivered to a request that has left")


def test_who_leaves_while_waiting_costs_no_prefill(shared_room):
    plan = [at(0, ask("a", 6), ask("b", 4), ask("c", 4), ask("d", 2)), at(2, leave("b")), at(3, leave("d"))]
    done = run(shared_room, plan, slots=1, sent="a runs; b, c and d wait; b and d leave")
    for name in "bd":
        is_not_run_again(done, name, "a request that left while it waited is prefilled")
    gets_its_answer(done, *"ac", mistake="a request that leaves while it waits affects the others")


def test_who_leaves_in_the_same_list_costs_no_call(shared_room):
    plan = [at(0, ask("a", 4), leave("a"), ask("b", 5)), at(2, ask("c", 3), ask("d", 3), leave("c"))]
    plan += [at(3, ask("r", prompt=64), leave("r"), ask("s", 2))]
    done = run(
        shared_room,
        plan,
        sent="a asks and leaves in the same list; later, so does c, and then r,"
        " whose prompt is too long for the window",
    )
    for name in "acr":
        is_not_run_again(done, name, "a request that asks and leaves in the same list is prefilled")
        nothing_is_given(done, name, "something is delivered to a request that has left")
    gets_its_answer(done, *"bds", mistake="a request that leaves at once affects the others")


def test_who_leaves_frees_its_slot_at_once(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 9), ask("c", 4)), at(2, leave("b"))]
    done = run(shared_room, plan, slots=2, sent="a and b run, c waits; b leaves after two steps")
    no_slot_idle(done, "the slot of a request that leaves is not used in the same round")


def test_one_who_leaves_disturbs_no_other(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 9), ask("c", 9), ask("d", 5)), at(3, leave("a")), at(4, leave("c"))]
    done = run(shared_room, plan, slots=3, sent="a, b and c run, d waits; a and c leave")
    gets_its_answer(done, *"bd", mistake="a request that leaves affects the others")


def test_a_leave_for_nobody_is_ignored(shared_room):
    plan = [at(0, leave("x"), ask("a", 8)), at(2, leave("nobody"), leave(0), leave(None))]
    done = run(shared_room, plan, sent="`leave` messages arrive with keys that no request has")
    gets_its_answer(done, "a", mistake="a `leave` for an unknown key affects the running answers")


def test_a_leave_for_an_answer_that_has_ended_is_ignored(shared_room):
    plan = [at(0, ask("a", 2), ask("b", 12), ask("c", 1)), at(3, leave("a"), leave("c"))]
    plan += [at(4, ask("e", 4), ask("f", 4), ask("g", 4))]
    done = run(shared_room, plan, sent="a and c leave after they have ended; then e, f and g arrive")
    for call in done.of("prefill"):
        mistake = "a `leave` for an answer that has ended frees its slot a second time"
        require(call["over"] is None, mistake, **done.facts(call))
    gets_its_answer(done, *"befg", mistake="a `leave` for an answer that has ended affects the others")


def test_a_leave_for_an_answer_that_has_failed_is_ignored(shared_room):
    plan = [at(0, ask("x", 9)), at(1, ask("a", fails=["OSError", "no"])), at(3, leave("a"), ask("b", 4), ask("c", 4))]
    done = run(shared_room, plan, sent="x runs; a's prefill fails, and a leaves; then b and c arrive")
    for call in done.of("prefill"):
        mistake = "a `leave` for an answer that has failed frees its slot a second time"
        require(call["over"] is None, mistake, **done.facts(call))
    gets_its_answer(done, *"xbc", mistake="a `leave` for an answer that has failed affects the others")


def test_a_key_may_come_again(shared_room):
    beside, refused = ask("x", 14), ask("r", key="k", prompt=64)
    a, b, c = (ask(name, 4, key="k", prompt=prompt) for name, prompt in zip("abc", (3, 4, 5), strict=True))
    once_ended = [
        ([at(0, beside, ask("a", 2, key="k")), at(4, b)], "after its answer has ended"),
        ([at(0, beside, ask("a", 2, key="k")), at(4, leave("k"), b)], "right after a `leave` that arrived too late"),
        ([at(0, beside), at(2, refused), at(5, b)], "after a request with that key was refused"),
        ([at(0, beside, ask("a", key="k", fails=["OSError", "no"])), at(4, b)], "after its prefill has failed"),
    ]
    once_left = [
        ([at(0, beside, a), at(2, leave("k")), at(4, b)], "after its reader has left"),
        ([at(0, beside, a), at(2, leave("k"), b)], "in the same list as its `leave`"),
        ([at(0, beside, a, leave("k"), b)], "in the same list as its first `ask` and the `leave` for that"),
        (
            [at(0, beside), at(2, refused, leave("k"), b)],
            "in the same list as an `ask` that is refused and the `leave` for that",
        ),
        ([at(0, beside, a), at(2, leave("k"), b, leave("k"), c)], "twice in the same list"),
    ]
    # on one slot x runs and the others wait
    for slots, plan, when in [(4, *each) for each in once_ended + once_left] + [(1, *each) for each in once_left]:
        done = run(shared_room, plan, slots=slots, sent=f"x runs; key k is used again {when}; slots={slots}")
        newest = "c" if "c" in done.asks else "b"
        gets_its_answer(done, newest, mistake="a key that is used again does not get its answer")
        for name in set(done.asks) - {"x", newest}:
            if done.asks[name]["state"] == "left":
                is_not_run_again(
                    done, name, "an answer whose reader has left keeps running when its key is used again", most=1
                )


def test_a_key_that_comes_again_has_come_last(shared_room):
    plan = [at(0, *[ask(name, 6) for name in "abc"], ask("d", key="k")), at(2, leave("k"), ask("e"), ask("f", key="k"))]
    done = run(shared_room, plan, slots=2, sent="a, b, c and d ask; later, d leaves, e asks, and f asks with d's key")
    in_order(done, "abcef", "a request that leaves and asks again with its key gets back its old place in the queue")


def test_any_hashable_is_a_key(shared_room):
    keys = {"a": 0, "b": None, "c": "", "d": ["t", 1], "e": {}, "f": {}, "g": "0", "h": "None", "i": -1, "j": -2}
    asks = [ask(name, 6, key=key) for name, key in keys.items()]
    done = run(
        shared_room,
        [at(0, *asks)],
        sent="requests arrive with the keys 0, None, '', ('t', 1), '0', 'None', -1, -2 and two plain objects",
    )
    gets_its_answer(done, *keys, mistake="an answer is lost because of its key")
    plan = [at(0, *asks, ask("z", 9)), at(2, leave(0), leave(["t", 1])), at(3, leave(None), leave(""))]
    done = run(shared_room, plan, slots=3, sent="the requests with the keys 0, None, '' and ('t', 1) leave")
    for name in "abcd":
        is_not_run_again(done, name, "a `leave` is lost because of its key", most=1)
    gets_its_answer(
        done, *"ghij", mistake="a request leaves, and an answer with a different but similar key is dropped, too"
    )
    # what leaves is equal to what asked, not the same object
    plan = [at(0, ask("d", 6, key=["t", 1]), ask("i", 6, key=10**9)), at(2, leave(["t", 1]), leave(10**9))]
    done = run(shared_room, plan, sent="the keys ('t', 1) and 1000000000 leave while their answers run")
    for name in "di":
        is_not_run_again(done, name, "a `leave` is lost because of its key", most=1)
    done = run(
        shared_room,
        [at(0, *asks), at(2, None)],
        slots=2,
        sent="requests arrive with the keys 0, None, '', ('t', 1) and others; after two steps, take returns None",
    )
    given = {name: done.asks[name]["at_close"] for name in keys}
    lost = [name for name in keys if not given[name] or "RuntimeError" not in given[name][-1].get("kinds", [])]
    if not set(lost) - set("abc"):  # where others get none either, that has a test of its own
        got = f"nothing for the keys {[keys[name] for name in lost]}"
        require(not lost, "on close, a running or waiting request does not get a RuntimeError", **done.facts(got=got))


# errors


def test_an_error_in_prefill_goes_to_that_answer_alone(shared_room):
    plan = [at(0, ask("a", 8), ask("b", fails=["OutOfMemory", "no room for b"]), ask("c", 5))]
    plan += [at(2, ask("d", fails=["ValueError", "bad ids"]), ask("e", 3))]
    done = run(shared_room, plan, sent="a to e ask; the prefills of b and d fail")
    for name in "bd":
        gets_its_error(done, name, "an error in prefill does not reach the request it belongs to")
        is_not_run_again(done, name, "an answer whose prefill has failed keeps running")
    gets_its_answer(done, *"ace", mistake="an error in prefill affects the others")


def test_after_an_error_in_prefill_its_slot_is_free(shared_room):
    failing = [ask(name, fails=["OSError", "no"]) for name in "abc"]
    plan = [at(0, ask("x", 9)), at(2, *failing, ask("d", 3)), at(4, ask("e", 3))]
    done = run(shared_room, plan, slots=2, sent="x runs, on two slots; three prefills fail, but not d's and e's")
    gets_its_answer(done, *"de", mistake="a prefill that fails does not free its slot")
    plan = [at(0, ask("x", 9)), at(2, failing[0], ask("d", 3))]
    done = run(shared_room, plan, slots=2, sent="x runs, on two slots; a's prefill fails, d waits")
    no_slot_idle(done, "a prefill that fails frees its slot only in the next round")


def test_an_error_in_step_goes_to_those_that_were_in_it(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 9), ask("c", 8))]
    fails = {3: ["OutOfMemory", "the third step failed"]}
    done = run(shared_room, plan, slots=2, fails=fails, sent="a and b run, c waits; the third step fails")
    for name in "abc":
        gets_its_error(done, name, "an error in step does not reach every answer in that step")
        is_not_run_again(
            done, name, "an answer whose step has failed keeps running", most=99 * (name not in failed(done))
        )
        reached = [out for out in done.asks[name]["given"] if out.get("raised") == "OutOfMemory"]
        require(
            not reached or name in failed(done),
            "an error in step reaches a request that was only waiting",
            **done.facts(),
        )


def failed(done):
    return [name for name, each in done.asks.items() if "raised" in each["alone"][-1]]


def test_after_an_error_in_step_the_loop_goes_on(shared_room):
    plan = [at(0, *[ask(name, 5) for name in "abcdef"])]
    fails = {2: ["RuntimeError", "the second step failed"], 5: ["OSError", "the fifth, too"]}
    done = run(
        shared_room, plan, slots=2, fails=fails, sent="a to f ask, with two slots; the second and the fifth step fail"
    )
    gets_its_answer(done, *"abcdef", mistake="after an error in step, the waiting requests do not get their answers")
    no_slot_idle(done, "a step that fails does not free its slots")


# the close


def test_at_the_close_all_get_a_runtime_error(shared_room):
    plan = [at(0, ask("a", 9), ask("b", 9), ask("c", 9), ask("d", 9)), at(2, leave("d")), at(3, None)]
    done = run(
        shared_room, plan, slots=2, sent="a and b run, c waits, d has left; after three steps, take returns None"
    )
    for name in "abc":
        given = done.asks[name]["at_close"]
        closed = bool(given) and "RuntimeError" in given[-1].get("kinds", [])
        mistake = "on close, a running or waiting request does not get a RuntimeError"
        got = said(given[-1]) if given else "nothing"
        require(
            closed, mistake, sent=f"{done.sent}; the request in question is {name}", expected="RuntimeError", got=got
        )
        errors = [out for out in given if "raised" in out]
        require(
            len(errors) == 1,
            "an error is delivered twice",
            sent=f"{done.sent}; the request in question is {name}",
            got=len(errors),
        )
    nothing_is_given(done, "d", "on close, something is delivered to a request that has left", closed=True)


def test_at_the_close_who_has_ended_gets_nothing_more(shared_room):
    plans = [("b runs", [at(0, ask("a", 2), ask("b", 9)), at(4, None)]), ("nothing runs", [at(0, ask("a", 2))])]
    for sent, plan in plans:
        done = run(shared_room, plan, sent=f"a has ended, {sent}; take returns None")
        given = done.asks["a"]["at_close"]
        mistake = "on close, something is delivered to an answer that has already ended"
        require(not given, mistake, **done.facts(got="; ".join(map(said, given))))


def test_after_the_close_nothing_is_called(shared_room):
    for sent, plan in (
        ("a runs", [at(0, ask("a", 9)), at(3, None)]),
        ("nothing runs", [at(0, ask("a", 2))]),
        ("a runs, b has just arrived", [at(0, ask("a", 9)), at(3, ask("b", 9)), at(3, None)]),
    ):
        done = run(shared_room, plan, sent=f"{sent}; take returns None")
        closed = [call for call in done.of("take") if call["brought"] is None]
        if closed:
            later = [call for call in done.calls[done.calls.index(closed[0]) + 1 :] if call["call"] != "give"]
            require(not later, "after take has returned None, the loop goes on", **done.facts(got=shown(done)))
        raised = done.outcome.get("raised")
        mistake = "on close, run raises instead of returning"
        require(raised is None, mistake, **done.facts(got=done.outcome.get("said"), where=done.outcome.get("where")))


def test_it_is_one_plain_loop(shared_room):
    done = run(shared_room, [at(0, ask("a", 3), ask("b", 2))], sent="a and b ask")
    mistake = "the slot model, take or give is not called in run's thread"
    require(not done.other_thread, mistake, sent=done.sent, expected="all calls in the thread that called run")
