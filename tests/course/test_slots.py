"""The tuned slot models give what transformers gives for each sequence alone, whatever is in the other slots.

Where there is a CUDA device its slot model is tried as well; elsewhere nothing says that it was.
"""

import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from course.qwen import slots, slots_cuda
from course.qwen.models import tiny

KINDS = {"cpu": slots.SlotModel}
if torch.cuda.is_available():
    KINDS["cuda"] = slots_cuda.SlotModel


def grouped():
    """A model with grouped heads, untied embeddings, another rope_theta and weights that float16 cannot hold."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=400,
        tie_word_embeddings=False,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(params=KINDS)
def make(request):
    """Makes a slot model of that kind, and gives the model that it was made of."""

    def make(model, **options):
        model = model.to(request.param)
        return KINDS[request.param](model, **options), model

    yield make
    tiny()[0].to("cpu")


def alone(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids], device=model.device)).logits[0, -1].float()


@pytest.mark.parametrize("of", [lambda: tiny()[0], grouped], ids=["tiny", "grouped"])
def test_logits_are_those_of_the_sequence_alone(make, of):
    slot_model, model = make(of(), slots=5)
    drawn, held = random.Random(1), {}
    for _ in range(60):
        if not held or drawn.random() < 0.3:
            slot, length = drawn.randrange(5), drawn.choice([1, 3, 50, 300])
            held[slot] = [drawn.randrange(300) for _ in range(length)]
            found = {slot: slot_model.prefill(slot, held[slot])}
        else:
            named = drawn.sample(list(held), drawn.randint(1, len(held)))
            ids = [drawn.randrange(300) for _ in named]
            for slot, id in zip(named, ids, strict=True):
                held[slot] = [*held[slot], id]
            found = dict(zip(named, slot_model.step(named, ids), strict=True))
        for slot, logits in found.items():
            torch.testing.assert_close(logits, alone(model, held[slot]), atol=1e-4, rtol=0)


def test_a_prefix_that_is_kept_changes_nothing():
    model = grouped()
    plain, kept = slots.SlotModel(model), slots.SlotModel(model, prefix=[1, 2, 3, 4])
    for ids in ([1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3], [9, 2, 3, 4, 5], [1, 2, 3, 4, *range(60)]):
        torch.testing.assert_close(kept.prefill(0, ids), plain.prefill(0, ids), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept.step([0], [7]), plain.step([0], [7]), atol=1e-5, rtol=0)


def test_greedy_answers_are_generates_alone_and_beside_others(make):
    model, tokenizer = tiny()
    slot_model, model = make(model, slots=16)
    asked = ["你好", "What is a token?", "Hello!", "什么是 KV 缓存？"] * 4
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in asked
    ]
    answers = [[int(slot_model.prefill(slot, ids).argmax())] for slot, ids in enumerate(prompts)]
    for _ in range(23):
        rows = slot_model.step(list(range(16)), [answer[-1] for answer in answers])
        for answer, row in zip(answers, rows, strict=True):
            answer.append(int(row.argmax()))
    for ids, answer in zip(prompts[:4], answers[:4], strict=True):
        prompt = torch.tensor([ids], device=model.device)
        whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
        expected = whole[0, len(ids) :].tolist()
        assert answer[: len(expected)] == expected
    assert answers[:4] == answers[4:8] == answers[8:12] == answers[12:]


def test_what_cannot_be_is_a_value_error_and_changes_nothing(make):
    slot_model, model = make(grouped(), slots=2, window=8)
    slot_model.prefill(0, [1, 2, 3])
    for call in (
        lambda: slot_model.prefill(2, [1]),
        lambda: slot_model.prefill(0, []),
        lambda: slot_model.prefill(0, [1] * 9),
        lambda: slot_model.step([0, 0], [1, 1]),
        lambda: slot_model.step([0, 1], [1, 1]),
        lambda: slot_model.step([0, -1], [1, 1]),
    ):
        with pytest.raises(ValueError):
            call()
    ids = [1, 2, 3]
    for id in (4, 5, 6, 7, 8):
        ids.append(id)
        torch.testing.assert_close(slot_model.step([0], [id])[0], alone(model, ids), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="slot 0 holds 8 of 8"):
        slot_model.step([0], [9])
