"""The tuned slot models give what transformers gives for each sequence alone, whatever is in the other slots.

Where there is a CUDA device its slot model is tried as well; elsewhere nothing says that it was.
"""

import json
import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from course.grading import check
from course.manifest import ROOT
from course.qwen import measure_slots, slots, slots_cuda
from course.qwen.models import tiny

KINDS = {"cpu": slots.SlotModel}
if torch.cuda.is_available():
    KINDS["cuda"] = slots_cuda.SlotModel


SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 400,
}


def grouped():
    """A model with grouped heads, untied embeddings, another rope_theta and weights that float16 cannot hold."""
    torch.manual_seed(0)
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=False, rope_parameters=rope)).eval()


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
        return model(torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()


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


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_as_qwen2_5_is_published(tmp_path, tied):
    config = Qwen2Config(**{**SMALL, "tie_word_embeddings": tied})
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    # as in Qwen2.5-0.5B-Instruct: the old names, more than one end
    published = json.loads((tmp_path / "config.json").read_text())
    del published["rope_parameters"], published["dtype"], published["layer_types"]
    published |= {"rope_theta": 1000000.0, "torch_dtype": "bfloat16", "sliding_window": 32768, "max_window_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(published))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 5], "do_sample": True}))
    model = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    slot_model = slots.SlotModel(model, slots=2)
    assert slot_model.eos_token_ids == {5, 7} and slot_model.window == 400
    assert model.model.rotary_emb.inv_freq[1] == pytest.approx(1e6 ** (-2 / 16))
    for slot, ids in enumerate(([1, 2, 3], list(range(50)))):
        torch.testing.assert_close(slot_model.prefill(slot, ids), alone(model, ids), atol=1e-4, rtol=0)
    rows = slot_model.step([0, 1], [9, 8])
    for row, ids in zip(rows, ([1, 2, 3, 9], [*range(50), 8]), strict=True):
        torch.testing.assert_close(row, alone(model, ids), atol=1e-4, rtol=0)


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


def test_200_greedy_answers_are_generates_alone_and_beside_15_others():
    """Their first tokens; `python -m course.qwen.measure_slots --answers` compares them to their ends."""
    model, tokenizer = tiny()
    asked = measure_slots.prompts(tokenizer, 200)
    assert measure_slots.differing(slots.SlotModel(model), model, asked, tokens=6) == []


def test_the_measurement_of_a_gpu_can_be_tried_without_one(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["measure_slots", "--gpu", "--shape", "small", "--rounds", "1"])
    threads = torch.get_num_threads()
    try:
        assert measure_slots.main() == 0
    finally:
        torch.set_num_threads(threads)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if len(row) == 4 and row[0].isdecimal()] == ["1", "4", "16", "64"]


def test_it_passes_the_tests_of_4_5_as_an_answer():
    verdict = check("4.5", ROOT / "course" / "qwen" / "slots.py")
    assert verdict.passed, "\n".join(verdict.full_lines())


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
