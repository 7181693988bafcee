"""1.2: one turn of a conversation: prompt, reply, history, sampling.

The model computes next to nothing, so that 256 tokens take a moment; the probe chooses what it says.
The chat template is the tiny Qwen's; its tokenizer merges newlines as Qwen's own does, so that a prompt
that was encoded piece by piece has other ids.
"""

import functools

from course.grading.kit.settings import CASES, FLAT, MOST_TOKENS, is_made_of, obeyed, wanted, with_ids
from course.grading.kit.tokenizers import ENCODING, is_about_an_encoding, merge_newlines, template_ids
from course.grading.mistakes import fail, require

OTHER_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
EVERY_TOKEN = "every token"
CLOSE = {"x": 2.001, "y": 2.0, "z": 2.0}
EARLIER = [["My name is Ada.", "Hello, Ada!"], ["\n  1 + 1?\n", "\n2\n\n(two) 二"]]
MANY = [[f"Question {number}?", f"Answer {number}."] for number in range(160)]
"""More turns than an answer that keeps only the last few would hand on, and more tokens than fit into 2,048."""

LONG = (
    "Hello! 你好！\n\nuser\nassistant\n1. a list , with\n    print( x )\n"
    "2. system 👍🏽 é , then\n\nHello!assistant\nThe end ."
)


# scenes


def talk(answer, inside, calls, say="Fine.", ids=None, logits=None):
    """Makes the calls one after the other. What a call has beside chat's own arguments:

    "template": set on the tokenizer before it; "settings": what the model's generation_config has besides
    what most checkpoints set; "logits": as for all calls; in both, tokens stand for their ids; EVERY_TOKEN
    are all but the special tokens, nearly equally likely, by falling rank.
    "pairs": "tuple" turns the history's pairs into tuples; history "last": what came back last.
    """
    import copy

    import torch

    from course.grading.probe import Probe

    if "parts" not in inside.kept:
        inside.kept["parts"] = small_model(inside), merge_newlines(inside.tiny[1])
    model, tokenizer = inside.kept["parts"]
    torch.default_generator.manual_seed(5)  # torch.manual_seed looks for a GPU each time
    model = copy.deepcopy(model)  # another one in each scene: an answer may keep what it has seen
    most_checkpoints = copy.deepcopy(model.generation_config)
    probe = Probe(model, tokenizer)
    if logits:
        probe.logits(with_ids(tokenizer, logits))
    elif ids:
        probe.say_ids(ids_of(tokenizer, ids))
    else:
        probe.say(say)

    results, histories = [], []
    for call in calls:
        tokenizer.eos_token = call.get("eos_token", "<|im_end|>")
        if "template" in call:
            tokenizer.chat_template = call["template"]
        if "settings" in call:
            model.generation_config = copy.deepcopy(most_checkpoints)
            model.generation_config.update(**with_ids(tokenizer, call["settings"]))
        if "logits" in call:
            every = call["logits"] == EVERY_TOKEN
            probe.logits(every_token(tokenizer) if every else with_ids(tokenizer, call["logits"]))
        arguments = {
            name: call[name] for name in ("history", "system", "max_new_tokens", "temperature") if name in call
        }
        if call.get("history") == "last":
            arguments["history"] = histories[-1] if histories else None
        elif call.get("pairs") == "tuple":
            arguments["history"] = [tuple(pair) for pair in call["history"]]
        expected = prompt_ids(tokenizer, call["text"], **arguments)
        before = len(probe.report()["conversations"])
        kept, errors = [], []
        result = inside.outcome(noted_chat, answer.chat, (model, tokenizer, call["text"]), arguments, kept, errors)
        result["about_an_encoding"] = any(map(is_about_an_encoding, errors))
        returned = kept[0] if kept else None
        history = returned[1] if isinstance(returned, tuple | list) and returned[1:] else None
        histories.append(history)
        result["returned"] = inside.plain(listed(returned))
        result["is_list"] = isinstance(history, list)
        result["history_type"] = type(history).__name__
        result["callers_history"] = inside.plain(arguments.get("history"))
        conversations = probe.report()["conversations"][before:]
        result["steps"] = sum(each["steps"] for each in conversations)
        result["new_ids"] = conversations[-1]["new_ids"] if conversations else []
        result["expected"], result["read"] = expected, read_ids(conversations, expected)
        for name in ("expected", "read"):
            result[f"{name}_text"] = result[name] and tokenizer.decode(result[name])
        results.append(result)
    for result, history in zip(results, histories, strict=True):
        result["history_at_the_end"] = inside.plain(listed(history))
    return results


def every_token(tokenizer):
    return {id: -1e-6 * id for id in range(len(tokenizer)) if id not in tokenizer.added_tokens_decoder}


def small_model(inside):
    """A model that computes nothing, with the settings of most checkpoints."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from course.grading.probe import without_layers

    tiny, tokenizer = inside.tiny
    config = Qwen2Config(
        vocab_size=tiny.config.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        eos_token_id=tiny.config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    # what it computes is of no use, since the probe chooses the logits
    model.model.forward = functools.partial(without_layers, config)
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    model.generation_config = GenerationConfig(
        **sampling,
        eos_token_id=tiny.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def noted_chat(chat, parts, arguments, kept, errors):
    try:
        kept.append(chat(*parts, **arguments))
    except Exception as error:
        errors.append(error)
        raise


def listed(value):
    """Lists and tuples of any make as plain lists."""
    return list(map(listed, value)) if isinstance(value, tuple | list) else value


def prompt_ids(tokenizer, text, history=None, system="You are a helpful assistant.", **_):
    messages = [{"role": "system", "content": system}]
    for pair in history or []:
        messages += [
            {"role": role, "content": content} for role, content in zip(("user", "assistant"), pair, strict=False)
        ]
    messages.append({"role": "user", "content": text})
    return template_ids(tokenizer, messages)


def read_ids(conversations, expected):
    """The prompt that the model has read; it may have come in more than one piece."""
    for each in conversations:
        ids = each["prompt_ids"] + each["new_ids"]
        in_full = len(each["prompt_ids"]) <= len(expected) and ids[: len(expected)] == expected
        if not in_full:
            return each["prompt_ids"]
    return expected if conversations else None


def ids_of(tokenizer, parts):
    ids = []
    for part in parts:
        special = tokenizer.added_tokens_encoder.get(part)
        ids += tokenizer(part)["input_ids"] if special is None else [special]
    return ids


# tests


def sent(call):
    named = {
        name: value for name, value in call.items() if name in ("history", "system", "max_new_tokens", "temperature")
    }
    if named.get("history") == "last":
        named["history"] = "the list that came back"
    arguments = "".join(f", {name}={value!r}" for name, value in named.items())
    return f"chat(model, tokenizer, {call['text']!r}{arguments})"


def require_returned(call, result):
    if "raised" in result:
        raises = f"chat raises {result['raised'][0]}: {result['message'].partition(chr(10))[0][:200]}".rstrip(": ")
        fail(
            ENCODING if result["about_an_encoding"] else raises,
            sent=sent(call),
            expected="(reply, history)",
            where=result["where"],
        )


def reply_of(call, result):
    """The reply. That a history comes with it has a test of its own."""
    require_returned(call, result)
    returned = result["returned"]
    reply = returned[0] if isinstance(returned, list) and returned else returned
    require(
        isinstance(reply, str),
        "chat did not return the reply as text",
        sent=sent(call),
        expected="(reply, history)",
        got=returned,
    )
    return reply


def require_prompt(call, result, mistake):
    require_returned(call, result)
    if result["read"] is None:
        fail("chat did not call the model it was given", sent=sent(call))
    same_text = result["read_text"] == result["expected_text"]
    require(
        result["read"] == result["expected"],
        wrong_in_the_prompt(call, result) or mistake,
        sent=sent(call),
        expected=result["expected" if same_text else "expected_text"],
        got=result["read" if same_text else "read_text"],
    )


def wrong_in_the_prompt(call, result):
    """What the model read wrongly, in a sentence; None if that cannot be said."""
    read, expected = result["read_text"], result["expected_text"]
    if read == expected:
        return "the prompt was encoded piece by piece: its text is the template's, but its ids are not"
    if call.get("system") == "" and "You are a helpful assistant." in read:
        return "an empty system message was replaced by the default one"
    if expected.startswith(read.rstrip()) and call["text"].strip() in read:
        return "the generation prompt is missing: add_generation_prompt=True"
    if "".join(read.split()) == "".join(expected.split()):
        return "spaces and newlines do not reach the model unchanged"
    if call.get("template") or "<|im_start|>" not in read:
        return None
    if call["text"].strip() not in read:
        return "the text does not reach the model unchanged"
    if call.get("system", "You are a helpful assistant.") not in read:
        return "the system message does not reach the model"
    for pair in call.get("history") or []:
        for said in pair:
            if said not in read:
                return "not all turns of the history reach the model"
    return None


def require_prompts(room, calls, mistake):
    results = room.play(talk, calls=calls)
    for number, (call, result) in enumerate(zip(calls, results, strict=True)):
        require_nothing_kept(calls[:number], call, result)
        require_prompt(call, result, mistake)


def require_nothing_kept(earlier, call, result):
    read, expected = result["read_text"] or "", result["expected_text"]
    kept = [each for each in earlier if each["text"] in read and each["text"] not in expected]
    if kept:
        fail(
            "an earlier call affects a later one: something is kept between calls",
            sent=f"{sent(kept[0])}; later {sent(call)}",
            expected=expected,
            got=read,
        )


def test_the_model_reads_the_chat_template(room):
    require_prompts(
        room,
        [
            {"text": "  What is a\n\n\ttoken?　两个，空格 👍🏽 é ﬁ \r\n\r\n"},
            {"text": "\nWho are you?\n\n", "history": [], "system": "\nYou are a pirate.\n Say arr. \n"},
            {"text": "\n\n 1 + 1?\n", "history": []},
            {"text": "Hi", "history": [], "system": ""},
        ],
        "the model's prompt is wrong: it should be the chat template rendered from the system message and the text,"
        " with the generation prompt",
    )


def test_the_model_reads_the_history(room):
    require_prompts(
        room,
        [
            {"text": "What is my name?", "history": EARLIER, "pairs": "tuple"},
            {"text": "And now?", "history": EARLIER},
            {"text": "你好", "history": EARLIER[:1], "system": "Answer in Chinese."},
            {"text": "And then?", "history": []},
            {"text": "Still there?", "history": [["Say nothing.", ""], *EARLIER[:1]]},
            {"text": "How many were there?", "history": MANY, "max_new_tokens": 600},
        ],
        "the model's prompt is wrong: it should be the chat template rendered from the whole conversation,"
        " oldest turn first",
    )


def test_another_chat_template_is_followed(room):
    require_prompts(
        room,
        [
            {"text": "Hi"},
            {"text": "What is a token?", "history": [], "template": OTHER_TEMPLATE},
        ],
        "the tokenizer's chat_template was changed, but the prompt stayed the same",
    )


def test_the_reply_is_the_new_tokens_as_text(room):
    call = {"text": "Hello!", "history": EARLIER[:1]}
    [result] = room.play(talk, calls=[call], say=LONG)
    # special tokens have a test of their own
    reply = without_end(reply_of(call, result))
    mistake = "the reply is not exactly what the model said"
    if "helpful assistant" in reply:
        mistake = "the reply contains the prompt: the new tokens begin after it"
    elif LONG.startswith(reply):
        mistake = "the reply is cut short: the model said more"
    require(
        reply == LONG,
        mistake,
        sent=sent(call),
        expected=LONG,
        got=reply,
    )
    call = {"text": "Say nothing."}
    [result] = room.play(talk, calls=[call], ids=["<|im_end|>", "Something."])
    reply = without_end(reply_of(call, result))
    require(
        reply == "",
        "the model ended its turn immediately, but the reply is not empty",
        sent=f"{sent(call)}; the model says <|im_end|> immediately",
        expected="a reply without any text",
        got=reply,
    )


def without_end(reply):
    return reply.replace("<|im_end|>", "").strip()


def test_the_reply_has_no_special_tokens(room):
    call = {"text": "Hello!"}
    ids = ["One, two.", "<|im_end|>", "\nuser\nthree", "<|im_end|>"]
    [result] = room.play(talk, calls=[call], ids=ids)
    reply = reply_of(call, result)
    require_no_special_tokens(call, ids[:2], reply)
    require(
        "three" not in reply,
        "the reply goes on after <|im_end|>, which ends the model's turn",
        sent=f"{sent(call)}; the model says {''.join(ids)}",
        got=reply,
    )
    # the other token with which a turn can end, as the generation_config says
    ids = ["One, two.", "<|endoftext|>", "<|im_end|>"]
    [result] = room.play(talk, calls=[call], ids=ids)
    require_no_special_tokens(call, ids, reply_of(call, result))
    call = {"text": "Hello!", "eos_token": "<|endoftext|>"}
    ids = ["One, two.", "<|endoftext|>", "three", "<|im_end|>"]
    [result] = room.play(talk, calls=[call], ids=ids)
    reply = reply_of(call, result)
    require(
        "three" not in reply,
        "the reply goes on after the tokenizer's own end token: it is tokenizer.eos_token_id, whatever its name",
        sent=f"{sent(call)}; tokenizer.eos_token is {call['eos_token']}; the model says {''.join(ids)}",
        expected="One, two.",
        got=reply,
    )


def require_no_special_tokens(call, ids, reply):
    for special in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        require(
            special not in reply,
            f"the reply contains the special token {special}",
            sent=f"{sent(call)}; the model says {''.join(ids)}",
            got=reply,
        )


def test_a_new_history_comes_back(room):
    calls = [
        {"text": " Hello!\n"},
        {"text": "And?", "history": "last"},
        {"text": "So?", "history": EARLIER},
        {"text": "So?", "history": EARLIER, "pairs": "tuple"},
        {"text": "How many?", "history": MANY},
    ]
    came = []
    for call, result in zip(calls, room.play(talk, calls=calls), strict=True):
        require_returned(call, result)
        returned = result["returned"]
        require(
            isinstance(returned, list) and len(returned) == 2,
            "chat should return two values: the reply and the history",
            sent=sent(call),
            expected="(reply, history)",
            got=returned,
        )
        reply, history = returned
        require(
            result["is_list"],
            "the history that chat returns is not a list",
            sent=sent(call),
            got=result["history_type"],
        )
        given = came if call.get("history") == "last" else call.get("history", [])
        expected = [*given, [call["text"], reply]]
        require(
            stripped(history) == stripped(expected),
            "the returned history should be the one passed in, with (text, reply) appended",
            sent=sent(call),
            expected=expected,
            got=history,
        )
        came = history


def stripped(history):
    """The history without the blanks at the replies' ends, which are not graded."""
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], str) for pair in history
    ):
        return None
    return [[user, reply.strip()] for user, reply in history]


def test_the_callers_history_is_unchanged(room):
    calls = [{"text": "So?", "history": EARLIER}, {"text": "So?", "history": []}]
    for call, result in zip(calls, room.play(talk, calls=calls), strict=True):
        require_returned(call, result)
        require(
            result["callers_history"] == call["history"],
            "chat changed the caller's list: return a new one",
            sent=sent(call),
            expected=f"that list unchanged: {call['history']}",
            got=result["callers_history"],
        )


def test_nothing_is_kept_between_calls(room):
    calls = [
        {"text": "My name is Ada."},
        {"text": "What is my name?"},
        {"text": "And now?", "history": EARLIER[:1]},
        {"text": "What is a token?"},
        {"text": "My name is Ada."},
    ]
    results = room.play(talk, calls=calls)
    for number, (call, result) in enumerate(zip(calls, results, strict=True)):
        require_returned(call, result)
        require_nothing_kept(calls[:number], call, result)
    [again] = room.play(talk, calls=calls[:1], say="Something new.")
    for result, which in ((again, "with another model"), (results[-1], "with the same model")):
        require(
            result["steps"] > 0,
            "the model was not called: chat returned a stored reply from an earlier call",
            sent=f"{sent(calls[0])}, called again {which}",
            got=result["returned"],
        )
    returned = results[0]["returned"]
    # that a history comes back at all has a test of its own
    if isinstance(returned, list) and len(returned) == 2:
        require(
            results[0]["history_at_the_end"] == returned[1],
            "a later call changed the history that an earlier call had returned",
            sent="; ".join(map(sent, calls)),
            expected=returned[1],
            got=results[0]["history_at_the_end"],
        )


def test_temperature_0_takes_the_likeliest_token(room):
    go = {"text": "Go", "max_new_tokens": 8}
    settings = {"temperature": 5.0, "top_k": 3, "top_p": 1.0, "min_p": 0.01}
    calls = [go, {**go, "temperature": 3.0}, {**go, "temperature": 0.0}]
    calls.append({**go, "temperature": 0, "settings": settings})
    for number, (call, result) in enumerate(zip(calls, room.play(talk, calls=calls, logits=CLOSE), strict=True)):
        if call.get("temperature", 0) == 0:
            reply = reply_of(call, result)
            after = " after a call with temperature=3.0" if number == 2 else ""
            require(
                set(reply) == {"x"},
                f"at temperature 0, the most likely token was not always chosen{after}",
                sent=f"{sent(call)}; the model's generation_config has {call.get('settings', {'do_sample': True})}",
                expected=f"only x, whose logit is the largest of {CLOSE}",
                got=reply,
            )


def test_the_checkpoints_settings_change_nothing(room):
    for cases in (CASES[:6], CASES[6:-1], CASES[-1:]):
        require_settings_ignored(room, cases)


def require_settings_ignored(room, cases):
    calls = [
        {"text": "Go", "max_new_tokens": MOST_TOKENS, "temperature": heat, "logits": logits, "settings": settings}
        for settings, heat, logits, _ in cases
    ]
    for (settings, _, logits, letters), call, result in zip(cases, calls, room.play(talk, calls=calls), strict=True):
        if "raised" not in result and is_made_of(reply_of(call, result), letters):
            continue
        # what is wrong without the setting too is another test's concern
        [without] = room.play(talk, calls=[{**call, "settings": {}}])
        if "raised" in without or not is_made_of(reply_of(call, without), letters):
            continue
        fail(
            obeyed(settings),
            sent=f"{sent(call)}; the model's generation_config has {settings}; the logits are {logits}",
            expected=wanted(letters),
            got=result["said"] if "raised" in result else reply_of(call, result),
            where=result.get("where"),
        )


def test_above_0_the_temperature_draws(room):
    again = {"text": "Go", "max_new_tokens": 5, "temperature": 1.0, "logits": FLAT, "settings": {}}
    low = {**again, "temperature": 0.5}
    greedy = {**again, "settings": {"do_sample": False}}
    two = dict.fromkeys("st", 0.02) | dict.fromkeys("uvwxyz", 0.0)
    cold = {"text": "Go", "max_new_tokens": 24, "temperature": 0.001, "logits": two, "settings": {}}
    hot = {**cold, "temperature": 50.0, "logits": {"s": 20.0, **dict.fromkeys("tuvwxyz", 0.0)}}
    every = {"text": "Go", "max_new_tokens": 60, "temperature": 1.0, "logits": EVERY_TOKEN, "settings": {}}
    calls = [again, again, low, low, greedy, greedy, cold, hot, every]
    results = room.play(talk, calls=calls)
    for number in (0, 2, 4):
        call, words = calls[number], "; the model's generation_config has do_sample=False" if number == 4 else ""
        replies = [reply_of(call, result) for result in results[number : number + 2]]
        require(
            replies[0] != replies[1],
            "above temperature 0, repeated calls all gave the same reply",
            sent=f"{sent(call)}, twice; {len(FLAT)} letters are nearly equally likely{words}",
            expected="newly drawn tokens in each call",
            got=replies,
        )
    colder, hotter = (reply_of(call, result) for call, result in zip((cold, hot), results[6:8], strict=True))
    require(
        set(colder) <= set("st"),
        "the temperature has no effect, or the wrong one",
        sent=f"{sent(cold)}; the logits are {two}",
        expected="only s and t at such a low temperature",
        got=colder,
    )
    require(
        len(set(colder)) == 2,
        "a low temperature is treated as 0: two tokens are equally likely, but only one was drawn",
        sent=f"{sent(cold)}; the logits are {two}",
        expected="s and t about equally often",
        got=colder,
    )
    require(
        hotter.count("s") < 0.6 * len(hotter),
        "the temperature has no effect, or the wrong one",
        sent=f"{sent(hot)}; the logits are {hot['logits']}",
        expected="all eight letters at such a high temperature",
        got=hotter,
    )
    reply_of(every, results[8])
    if not has_unlikely(results[8]):  # one of 20 right answers
        results = room.play(talk, calls=[{**every, "max_new_tokens": 120}] * 2)
        require(
            any(map(has_unlikely, results)),
            "above temperature 0, the less likely tokens are cut off, as with top_k or top_p",
            sent=f"{sent(every)}, again and again; all tokens are nearly equally likely",
            expected=f"all of the tokens, including those with ids of {UNLIKELY} and above",
            got=f"ids up to {max([0, *results[0]['new_ids'], *results[1]['new_ids']])}",
        )


UNLIKELY = 2915
"""The last twentieth of all tokens."""


def has_unlikely(result):
    return any(id >= UNLIKELY for id in result["new_ids"])


def test_at_most_max_new_tokens(room):
    calls = [
        {"text": "Go", "max_new_tokens": 1},
        {"text": "Go", "max_new_tokens": 5},
        {"text": "Go"},
        {"text": "Go", "max_new_tokens": 300},
    ]
    for call in calls:
        [result] = room.play(talk, calls=[call], logits={"x": 1.0})
        reply = reply_of(call, result)
        most = call.get("max_new_tokens", 256)
        facts = {
            "sent": f"{sent(call)}; the model says x and never stops",
            "expected": f"{most} new tokens",
        }
        require(
            len(reply) <= most,
            "the reply has more than max_new_tokens tokens",
            **facts,
            got=f"{len(reply)} tokens",
        )
        require(
            len(reply) == most,
            "the reply was cut off before max_new_tokens, although the model had not finished",
            **facts,
            got=f"{len(reply)} tokens",
        )
        # a loop may look one step further than it needs
        require(
            result["steps"] <= most + 2,
            "the model generated more than max_new_tokens tokens, and some were thrown away",
            **facts,
            got=f"{result['steps']} model steps",
        )


def test_refuses_an_empty_text_and_a_negative_temperature(room):
    calls = [{"text": ""}, {"text": "", "history": EARLIER}, {"text": "Go", "temperature": -0.5}]
    for call, result in zip(calls, room.play(talk, calls=calls), strict=True):
        what = "empty text" if call["text"] == "" else "a negative temperature"
        if "raised" not in result:
            fail(
                f"{what} was accepted: it should raise ValueError",
                sent=sent(call),
                expected="ValueError",
                got=result["returned"],
            )
        require(
            "ValueError" in result["raised"],
            f"{what} raises {result['raised'][0]} instead of ValueError",
            sent=sent(call),
            expected="ValueError",
            got=result["said"],
            where=result["where"],
        )
