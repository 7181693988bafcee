"""3.5: one answer in the making, fed with logits that say what the test wants.

The rules that 3.6 shares are in sequence_cases.py; what is decided here concerns `take` alone.
Not covered: bytes that are no character, a U+FFFD that the model says; seeds drawn from a global generator.
"""

import functools
import random
import re
import statistics
import threading
import time

import sequence_cases as cases
from sequence_cases import CONTROL, ask, must_be_out

from course.grading.mistakes import require

LATE = 3000
"""So many tokens an answer has when its `take` is late."""
UNSEEDED, ROUNDS = 200, 6
"""So many sequences without a seed draw differently: of 65536 seeds 11 pairs would be alike."""
TOO_SLOW = 12.0
"""A late take may take so many times as long as an early one: what decodes all again takes 100 times."""


# in the room


class Taking:
    """One Sequence, and what its takes gave."""

    def __init__(self, answer, inside, ask):
        import torch

        _, tokenizer = inside.tiny
        self.inside, self.tokenizer = inside, tokenizer
        self.ask = cases.prepared(tokenizer, ask, [tokenizer.eos_token_id])
        self.prompt = tokenizer("What is a token?" * ask["prompt"])["input_ids"]
        self.logits = torch.full([len(tokenizer)], -1e4)
        self.pieces, self.raised, self.ended = [], None, False
        made = inside.outcome(self._make, answer)
        self.raised = made if "raised" in made else None

    def _make(self, answer):
        ask = self.ask
        self.sequence = answer.Sequence(
            self.tokenizer, list(self.prompt), limit=ask["limit"], eos_token_ids=list(ask["ends"]), **ask["options"]
        )

    @property
    def over(self):
        # one that never says its end is not asked for ever
        most = len(self.ask["ids"]) + 2 if not self.ask["values"] else self.ask["limit"]
        return self.raised is not None or self.ended or len(self.pieces) >= most

    def take(self):
        logits, ids = self.logits.clone(), self.ask["ids"]
        if self.ask["values"]:
            for id, value in self.ask["values"].items():
                logits[id] = value
        else:
            number = len(self.pieces)
            self.id = ids[number] if number < len(ids) else self.ask["ends"][0]
            logits[self.id] = 1e4
        given = logits.clone()
        kept = []
        taken = self.inside.outcome(lambda: kept.append(self.sequence.take(logits)))
        if "raised" in taken:
            self.raised = taken
            return
        piece = cases.as_piece(self.inside, kept[0])
        piece["changed"] = not logits.equal(given)
        for name in ("token", "finished"):
            piece[name] = self.inside.plain(getattr(self.sequence, name, "(missing)"))
        piece["chosen"] = None if self.ask["values"] else self.id
        # where each piece has a reason, none says the end
        more_to_say = len(self.ask["ids"]) > 1 or bool(self.ask["values"])
        early = self.pieces[-1]["finish_reason"] if self.pieces else more_to_say
        self.pieces.append(piece)
        self.ended = piece["finished"] is True or (piece["finish_reason"] is not None and not early)

    def result(self):
        said = "".join(piece["text"] for piece in self.pieces if isinstance(piece["text"], str))
        return {
            "pieces": self.pieces,
            "so_far": self.ask["so_far"],
            "drawn": cases.drawn(self.tokenizer, said),
            "prompt_tokens": len(self.prompt),
            "count": len(self.pieces),
            "limit": self.ask["limit"],
            "raised": self.raised,
        }


def take_all(answer, inside, asks, at_once, disturbed):
    """Has all asks answered, one after another; at once: one token of each in turn."""
    import torch

    rounds = [asks] if at_once else [[each] for each in asks]
    results = []
    for at_once in rounds:
        taking = [Taking(answer, inside, each) for each in at_once]
        while not all(each.over for each in taking):
            for each in taking:
                if disturbed:
                    torch.manual_seed(len(each.pieces) % 3)
                    random.seed(1)
                if not each.over:
                    each.take()
        results += [each.result() for each in taking]
    return results


def take_in_threads(answer, inside, asks):
    """Has all asks answered, each in a thread."""
    taking = [Taking(answer, inside, each) for each in asks]
    begin = threading.Barrier(len(taking))

    def take(each):
        begin.wait()
        while not each.over:
            each.take()

    threads = [threading.Thread(target=take, args=(each,), daemon=True) for each in taking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [each.result() for each in taking]


@functools.cache
def words_of(tokenizer):
    """The ids of all tokens that are letters: bytes that are no character are not promised."""
    return [id for word, id in tokenizer.get_vocab().items() if re.fullmatch("Ġ?[A-Za-z]+", word)]


def draw_with(answer, inside, seeds, at_once):
    """What a sequence with each of these seeds draws, three words; at once: all are made before one draws."""
    import torch

    _, tokenizer = inside.tiny
    logits = torch.full([len(tokenizer)], -1e4)
    logits[words_of(tokenizer)] = 0

    def made(seed):
        return answer.Sequence(tokenizer, [1], limit=8, eos_token_ids=[0], seed=seed)

    def drawn(sequence):
        said = []
        for _ in range(3):
            piece = sequence.take(logits)
            said.append(f"{getattr(sequence, 'token', '')} {getattr(piece, 'text', piece)}")
        return " | ".join(said)

    if at_once:
        return [drawn(each) for each in [made(seed) for seed in seeds]]
    return [drawn(made(seed)) for seed in seeds]


def cost_of_takes(answer, inside, text, stop):
    """CPU time of an early and of a late take, in µs."""
    import torch

    _, tokenizer = inside.tiny
    ids = tokenizer(text)["input_ids"]
    logits = {id: torch.full([len(tokenizer)], -1e4) for id in set(ids)}
    for id, each in logits.items():
        each[id] = 1e4
    sequence = answer.Sequence(tokenizer, [1, 2, 3], limit=10**6, eos_token_ids=[0], temperature=0, stop=stop)
    times = []
    for number in range(LATE):
        given = logits[ids[number % len(ids)]]
        began = time.process_time()
        sequence.take(given)
        times.append(time.process_time() - began)
        if sum(times) > 1.0:
            break  # it is clear by now
    return [statistics.median(each) * 1e6 for each in (times[5:55], times[-100:])]


# what the tests share


class Takes(cases.Driver):
    """Drives a Sequence by `take`."""

    def play(self, asks, at_once, disturbed):
        return self.room.play(take_all, asks=asks, at_once=at_once, disturbed=disturbed)


# the tests


def test_take_returns_a_piece(shared_room):
    cases.what_comes_is_pieces(Takes(shared_room))


def test_token_is_the_id_chosen_last(shared_room):
    for answer in Takes(shared_room)(ask(" It is  so . 龘"), ask("one", " two", stop=["two"]), ask("one two", limit=2)):
        for number, piece in enumerate(answer.pieces, 1):
            require(
                piece["token"] == piece["chosen"] and type(piece["token"]) is int,
                "`token` is not the last chosen id, as an int",
                sent=f"{answer.sent}; call number {number} to take",
                expected=piece["chosen"],
                got=piece["token"],
            )


def test_finished_says_whether_the_answer_has_ended(shared_room):
    ends = [
        (ask("one", " two"), 3, "the end token was chosen"),
        (ask("one", " two", " token", limit_after=2), 2, "the limit is reached"),
        (ask("one", " two", " token", stop=[" two"]), 2, "a stop sequence is complete"),
    ]
    for answer, (_, count, why) in zip(Takes(shared_room)(*(each[0] for each in ends)), ends, strict=True):
        for number, piece in enumerate(answer.pieces[:count], 1):
            # one that ends elsewhere is another test's concern
            if number < count and piece["finish_reason"] is None:
                mistake = "`finished` is not False mid-answer"
                require(piece["finished"] is False, mistake, sent=answer.sent, expected=False, got=piece["finished"])
            if number == count and piece["finish_reason"] is not None:
                mistake = f"`finished` is not True after {why}"
                require(piece["finished"] is True, mistake, sent=answer.sent, expected=True, got=piece["finished"])


def test_logits_are_not_changed(shared_room):
    asks = [
        ask("one two"),
        ask(draws=[2.0, 1.0], limit=5, temperature=0.5, top_p=0.6),
        ask(draws=[1.0], limit=3, temperature=0),
    ]
    for answer in Takes(shared_room)(*asks):
        require(
            not any(piece["changed"] for piece in answer.pieces),
            "take changes the logits that it is given",
            sent=answer.sent,
            expected="the caller's tensor unchanged",
        )


def test_the_texts_joined_are_the_answer(shared_room):
    cases.the_texts_joined_are_the_answer(Takes(shared_room))


def test_no_character_is_broken(shared_room):
    cases.no_character_is_broken(Takes(shared_room))


def test_a_cut_character_is_left_out(shared_room):
    cases.a_cut_character_is_left_out(Takes(shared_room))


def test_whole_characters_before_a_cut_one_come_out(shared_room):
    cases.whole_characters_before_a_cut_one_come_out(Takes(shared_room))


def test_text_comes_out_as_soon_as_it_can(shared_room):
    asks = [
        ask("Streaming shows each word while the model works."),
        ask("Here:\n- one\n- two\n"),
        ask("你好，我是一个小模型。龘。"),
        ask("服", "务", " one", CONTROL, " two", " "),
    ]
    for answer in Takes(shared_room)(*asks):
        require_out(answer, (), "complete text is held back")


def test_only_what_may_begin_a_stop_sequence_is_held(shared_room):
    asks = [
        ask("one", " ", "two ", " E", "very", " one", " ", stop=[" END"]),
        ask("one ", "S", "T", "ate ", "S", "T", "O", " two ", stop=["STOP"]),
        ask("你好", "我是", "一个", "小模型", stop=["小龘", "是二"]),
        ask("one", "\n", "two ", "\n", " ", "three ", stop=["\n\n", "User:"]),
    ]
    for answer, each in zip(Takes(shared_room)(*asks), asks, strict=True):
        require_out(answer, each["options"]["stop"], "text that cannot begin a stop sequence is held back")


def require_out(answer, stop, mistake):
    out = ""
    for number, piece in enumerate(answer.pieces[: len(answer.so_far) - 1], 1):
        out += piece["text"] if isinstance(piece["text"], str) else ""
        must = must_be_out(answer.so_far[: number + 1], stop)
        # a text that is wrong is another test's concern
        require(
            len(cases.solid(out)) >= len(cases.solid(must)) or not cases.solid(must).startswith(cases.solid(out)),
            mistake,
            sent=answer.sent,
            expected=f"{must!r} has come out after {number} tokens",
            got=repr(out),
        )


def test_the_limit_ends_the_answer(shared_room):
    cases.the_limit_ends_the_answer(Takes(shared_room))


def test_the_ends_token_ends_the_answer_without_text(shared_room):
    cases.the_ends_token_ends_the_answer_without_text(Takes(shared_room))


def test_finish_reason_says_why(shared_room):
    cases.finish_reason_says_why(Takes(shared_room))


def test_only_the_last_piece_has_a_finish_reason(shared_room):
    cases.only_the_last_piece_has_a_finish_reason(Takes(shared_room))


def test_the_counts_are_those_of_tokens(shared_room):
    drive = Takes(shared_room)
    cases.the_counts_are_those_of_tokens(drive)
    for answer in drive(ask("one 龘 two"), ask("one ", "S", "T", "O", "!", stop=["STOP"])):
        for number, piece in enumerate(answer.pieces, 1):
            require(
                piece["completion_tokens"] in (number, None),
                "completion_tokens is not the number of tokens chosen so far",
                sent=f"{answer.sent}; call number {number} to take",
                expected=number,
                got=piece["completion_tokens"],
            )


def test_a_stop_sequence_ends_the_answer(shared_room):
    cases.a_stop_sequence_ends_the_answer(Takes(shared_room))


def test_a_stop_sequence_in_several_tokens_ends_the_answer(shared_room):
    cases.a_stop_sequence_in_several_tokens_ends_the_answer(Takes(shared_room))


def test_a_stop_sequence_after_its_own_beginning_is_found(shared_room):
    cases.a_stop_sequence_after_its_own_beginning_is_found(Takes(shared_room))


def test_what_only_looked_like_a_stop_sequence_comes_out(shared_room):
    cases.what_only_looked_like_a_stop_sequence_comes_out(Takes(shared_room))


def test_the_stop_sequence_that_begins_first_counts(shared_room):
    cases.the_stop_sequence_that_begins_first_counts(Takes(shared_room))


def test_temperature_0_is_greedy(shared_room):
    cases.temperature_0_is_greedy(Takes(shared_room))


def test_tokens_are_drawn_at_the_temperature(shared_room):
    cases.tokens_are_drawn_at_the_temperature(Takes(shared_room))


def test_tokens_are_drawn_from_top_p(shared_room):
    cases.tokens_are_drawn_from_top_p(Takes(shared_room))


def test_equal_seeds_draw_alike(shared_room):
    cases.equal_seeds_draw_alike(Takes(shared_room))


def test_each_token_is_drawn_anew(shared_room):
    cases.each_token_is_drawn_anew(Takes(shared_room))


def test_nothing_else_changes_what_a_seed_draws(shared_room):
    cases.nothing_else_changes_what_a_seed_draws(Takes(shared_room))


def test_other_seeds_and_none_draw_differently(room):
    first, *seeded = room.play(draw_with, seeds=[None, *range(20)], at_once=False)
    cases.other_seeds_and_none_draw_differently(Takes(room))
    every = []
    for number in range(ROUNDS):
        # where each is made after the one before is gone, it may lie at the same address
        at_once = number % 2 == 0
        drawn = room.play(draw_with, seeds=[None] * UNSEEDED, at_once=at_once)
        if sum(len(set(said.split(" | "))) == 1 for said in drawn) > UNSEEDED / 2:
            return  # each token is drawn with the same random number: another test's concern
        require(
            len(set(drawn)) > 0.9 * UNSEEDED,
            "without a seed, sequences draw the same tokens:"
            " a clock, an address or a counter gives many of them the same seed",
            sent=f"{UNSEEDED} sequences without a seed, {'created at once' if at_once else 'one after another'}",
            expected="all different",
            got=f"{len(set(drawn))} different ones",
        )
        every += drawn
    require(
        len(set(every)) >= len(every) - 2,
        "without a seed, sequences draw the same tokens: there are too few seeds to draw from",
        sent=f"{len(every)} sequences without a seed, three tokens each",
        expected="all different",
        got=f"{len(set(every))} different ones",
    )
    alike = [seed for seed, text in enumerate(seeded) if text == first]
    require(
        not alike,
        "without a seed, the first sequence draws like one with a small seed:"
        " the server draws the same tokens after every restart",
        sent="the first sequence of a process, without a seed",
        expected="tokens unlike those drawn with any seed that a caller may pass",
        got=f"the same tokens as with seed={alike[0]}" if alike else None,
    )


def test_many_sequences_do_not_disturb_each_other(room):
    # its first tokens are bytes of a character: whose they are, each sequence has to know
    asks = [ask("龘", f" {name}", "龘 ST", "EP!", stop=["STOP"]) for name in ("red", "green", "blue", "white")]
    drive = Takes(room)
    alone = [answer.said for answer in drive(*asks)]
    answers = drive(*asks, at_once=True)
    results = room.play(take_in_threads, asks=asks * 2)
    said = ["".join(piece["text"] or "" for piece in each["pieces"]) for each in results]
    ways = [(each.said, expected, "taking turns") for each, expected in zip(answers, alone, strict=True)]
    ways += [(each, expected, "each in its own thread") for each, expected in zip(said, alone * 2, strict=True)]
    for got, expected, way in ways:
        require(
            got == expected,
            "concurrent sequences get mixed up: some of their data is stored in a place that they all share",
            sent=f"{drive.shown(asks[0])}, and others at the same time, {way}",
            expected=f"{expected!r}, as when it ran alone",
            got=repr(got),
        )


def test_a_late_take_costs_about_what_an_early_one_does(shared_room):
    texts = [("one two three four five six ", []), ("一个小模型，", ["。。"]), ("これはペンです", ["STOP"])]
    for text, stop in texts:
        for _ in range(3):
            early, late = shared_room.play(cost_of_takes, text=text, stop=stop)
            if not TOO_SLOW < late / early < 3 * TOO_SLOW:
                break
        require(
            late < TOO_SLOW * early,
            "a late take costs many times what an early one does: everything is decoded or searched again",
            sent=f"{LATE} calls to take, for a text without a newline: {text * 2!r} ..., stop={stop!r}",
            expected=f"about {early:.0f} µs, like one of the first calls",
            got=f"{late:.0f} µs for one of the last calls",
        )
