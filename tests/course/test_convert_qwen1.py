"""The converter against Qwen-1 written down a second time: in plain torch and in tiktoken."""

import base64
import json
import math
import shutil
import stat
import unicodedata
from collections import Counter

import pytest
import regex
import tiktoken
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from course.qwen import convert_qwen1
from course.qwen.convert_qwen1 import ConversionError, convert

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
WORDS += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": False,
    "hidden_size": 48,
    "intermediate_size": 136,
    "initializer_range": 0.02,
    "kv_channels": 12,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 8192,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "onnx_safe": None,
    "rotary_emb_base": 5000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 96,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": 768,
}
SAMPLING = {
    "chat_format": "chatml",
    "do_sample": True,
    "max_new_tokens": 512,
    "max_window_size": 6144,
    "repetition_penalty": 1.1,
    "top_k": 0,
    "top_p": 0.8,
    "transformers_version": "4.31.0",
}
TEXT = """
The model answers one token at a time, and the server sends each token to the client at once.
I'm sure they'll see that it's the server's job; we've said so, and you'd say it too.
模型一次只生成一个词元，服务器马上把它发给客户端。你好！有什么我能帮助你的吗？
你好，世界。服务器的工作是把每个词元马上发出去。   Blanks,   tabs\t\tand\n\n\nnewlines count.
"""


def ranks_of(text, merges=150):
    """A byte-level vocabulary as tiktoken trains one: the commonest pair first."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = Counter(tuple(bytes([byte]) for byte in word.encode()) for word in regex.findall(WORDS, text))
    for _ in range(merges):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))
        merged = Counter()
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                parts.append(b"".join(word[i : i + step]))
                i += step
            merged[tuple(parts)] += count
        words = merged
    ranks[b"20"] = len(ranks)  # never used: Qwen takes digits one by one
    return ranks


RANKS = ranks_of(TEXT)


def tensors(config, seed=0):
    """Random weights under their Qwen-1 names, large enough for every one to matter."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape, scale):
        return torch.randn(*shape, generator=generator) * scale

    width, inner = config["hidden_size"], config["intermediate_size"] // 2
    flat = width**-0.5
    weights = {"transformer.wte.weight": rand(config["vocab_size"], width, scale=1.0)}
    for i in range(config["num_hidden_layers"]):
        layer = f"transformer.h.{i}."
        weights[layer + "ln_1.weight"] = 1 + rand(width, scale=0.3)
        weights[layer + "attn.c_attn.weight"] = rand(3 * width, width, scale=flat)
        weights[layer + "attn.c_attn.bias"] = rand(3 * width, scale=0.5)
        weights[layer + "attn.c_proj.weight"] = rand(width, width, scale=flat)
        weights[layer + "ln_2.weight"] = 1 + rand(width, scale=0.3)
        weights[layer + "mlp.w1.weight"] = rand(inner, width, scale=flat)
        weights[layer + "mlp.w2.weight"] = rand(inner, width, scale=flat)
        weights[layer + "mlp.c_proj.weight"] = rand(width, inner, scale=inner**-0.5)
    weights["transformer.ln_f.weight"] = 1 + rand(width, scale=0.3)
    weights["lm_head.weight"] = rand(config["vocab_size"], width, scale=flat)
    return weights


def write_weights(folder, weights, *, shards=2, suffix=".safetensors"):
    stem, save = ("model", save_file) if suffix == ".safetensors" else ("pytorch_model", torch.save)
    if shards == 1:
        save(weights, folder / f"{stem}{suffix}")
        return
    weight_map = {}
    names = list(weights)
    # cut by count, so that one layer's tensors fall into two files, as they do in real ones
    size = math.ceil(len(names) / shards)
    for number in range(shards):
        file = f"{stem}-{number + 1:05}-of-{shards:05}{suffix}"
        part = names[number * size : (number + 1) * size]
        save({name: weights[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def write_ranks(folder, ranks):
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))


def write_legacy(folder, weights=None, **layout):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    settings = SAMPLING | {"eos_token_id": len(RANKS), "pad_token_id": len(RANKS)}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    # as in the real folder, and must never run
    for name in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py"):
        (folder / name).write_text("raise RuntimeError('remote code ran')\n")
    auto_map = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "QWenTokenizer", "auto_map": auto_map})
    )
    write_ranks(folder, RANKS)
    write_weights(folder, tensors(CONFIG) if weights is None else weights, **layout)
    return folder


def qwen1_logits(weights, config, ids):
    """Qwen-1's forward pass. ids: [batch, time] -> logits [batch, time, vocab]."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    size, (batch, time) = width // heads, ids.shape

    def rms(x, weight):
        square = x.pow(2).mean(-1, keepdim=True)
        return x / torch.sqrt(square + config["layer_norm_epsilon"]) * weight

    def rotate(x):  # [batch, time, heads, size]: the first half of a head pairs with the second
        frequency = config["rotary_emb_base"] ** (-torch.arange(0, size, 2) / size)
        angle = torch.arange(time)[:, None] * frequency
        cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]
        a, b = x[..., : size // 2], x[..., size // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    future = torch.ones(time, time).triu(1).bool()
    x = weights["transformer.wte.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        w = {
            name.removeprefix(f"transformer.h.{i}."): weight
            for name, weight in weights.items()
            if name.startswith(f"transformer.h.{i}.")
        }
        fused = rms(x, w["ln_1.weight"]) @ w["attn.c_attn.weight"].T + w["attn.c_attn.bias"]
        q, k, v = (part.view(batch, time, heads, size) for part in fused.split(width, -1))
        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / math.sqrt(size)
        scores = scores.masked_fill(future, float("-inf")).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores, v).reshape(batch, time, width)
        x = x + mixed @ w["attn.c_proj.weight"].T
        h = rms(x, w["ln_2.weight"])
        gated = (h @ w["mlp.w1.weight"].T) * silu(h @ w["mlp.w2.weight"].T)
        x = x + gated @ w["mlp.c_proj.weight"].T
    return rms(x, weights["transformer.ln_f.weight"]) @ weights["lm_head.weight"].T


def listing(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    return write_legacy(tmp_path_factory.mktemp("checkpoint") / "Qwen-1_8B-Chat")


@pytest.fixture(scope="module")
def native(legacy, tmp_path_factory):
    return convert(legacy, tmp_path_factory.mktemp("converted") / "native")


@pytest.fixture
def broken(legacy, tmp_path):
    """A copy to break."""
    return shutil.copytree(legacy, tmp_path / "legacy")


@pytest.fixture(scope="module")
def tokenizer(native):
    return AutoTokenizer.from_pretrained(native)


@pytest.fixture(scope="module")
def reference():
    control = {token: len(RANKS) + i for i, token in enumerate(CONTROL)}
    return tiktoken.Encoding("qwen", pat_str=WORDS, mergeable_ranks=RANKS, special_tokens=control)


IDS = torch.randint(0, CONFIG["vocab_size"], (2, 96), generator=torch.Generator().manual_seed(1))


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(("shards", "suffix"), [(1, ".safetensors"), (3, ".safetensors"), (1, ".bin"), (2, ".bin")])
def test_logits_are_those_of_the_architecture(tmp_path, shards, suffix):
    source = write_legacy(tmp_path / "legacy", shards=shards, suffix=suffix)
    model = load(convert(source, tmp_path / "native"))
    expected = qwen1_logits(tensors(CONFIG), CONFIG, IDS)
    assert expected.std() > 0.5
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=0)
    assert len(list((tmp_path / "native").glob("*.safetensors"))) == shards


@torch.no_grad()
def test_generation_with_a_cache_follows_the_architecture(native):
    ids = IDS[:1, :7]
    out = load(native).generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.0)
    for _ in range(out.shape[1] - 7):
        ids = torch.cat([ids, qwen1_logits(tensors(CONFIG), CONFIG, ids)[:, -1:].argmax(-1)], 1)
    assert ids.tolist() == out.tolist()


def test_the_config_is_native(native):
    config = json.loads((native / "config.json").read_text())
    assert config["model_type"] == "qwen2"
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["max_position_embeddings"] == CONFIG["seq_length"]
    assert config["tie_word_embeddings"] is False
    assert "auto_map" not in config
    assert not list(native.glob("*.py"))


def test_half_precision_is_kept(tmp_path):
    weights = {name: weight.bfloat16() for name, weight in tensors(CONFIG).items()}
    source = write_legacy(tmp_path / "legacy", weights)
    target = convert(source, tmp_path / "native")
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    for file in target.glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_saved_buffers_do_not_disturb(tmp_path):
    weights = tensors(CONFIG)
    weights["transformer.h.0.attn.rotary_emb.inv_freq"] = torch.ones(6)
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    source = write_legacy(tmp_path / "legacy", weights)
    load(convert(source, tmp_path / "native"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello, world!",
        "you'll see the server's token; I'M sure they'd SAY it",
        "你好，世界。服务器马上把每个词元发出去！",
        "こんにちは、カタカナ。안녕하세요",
        "👋🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇨🇳",
        "2020 1234567890 3.14159 ２０２６ ½ Ⅷ",
        "  two  blanks \n\n\n newlines\r\n\ttabs\t\t\n ",
        "naïve café e\u0301 Å ﬁ 한글",
        "def f(x):\n    return {'a': [x ** 2, -1.5e-3]}  # ok\n",
        "\x00\x07 \u200b\u200d\ufeff \U0010ffff",
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
        "a<|endoftext|><|extra_0|> <|extra_204|>b<|extra_205|><|im_start",
        TEXT,
    ],
)
def test_token_ids_are_those_of_tiktoken(native, tokenizer, reference, text):
    # Qwen-1's own tokenizer normalizes before it encodes
    normal = unicodedata.normalize("NFC", text)
    ids = reference.encode(normal, allowed_special="all")
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == normal
    # transformers builds its tokenizer anew; other programs take the file as it is
    assert Tokenizer.from_file(str(native / "tokenizer.json")).encode(text).ids == ids


def test_token_ids_of_random_text(tokenizer, reference):
    generator = torch.Generator().manual_seed(2)
    alphabet = sorted(set(TEXT)) + ["e\u0301", "👍", "\r\n", "7", "'s", "<|im_end|>"]
    for _ in range(300):
        picks = torch.randint(0, len(alphabet), (60,), generator=generator).tolist()
        text = unicodedata.normalize("NFC", "".join(alphabet[pick] for pick in picks))
        assert tokenizer(text)["input_ids"] == reference.encode(text, allowed_special="all")


def test_special_tokens_keep_their_order(tokenizer):
    assert tokenizer.convert_tokens_to_ids(CONTROL) == [len(RANKS) + i for i in range(208)]
    assert len(tokenizer) == len(RANKS) + 208 < CONFIG["vocab_size"]
    ids = tokenizer("".join(CONTROL))["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == CONFIG["seq_length"]


def test_the_chat_template_is_chatml_with_the_system_line(tokenizer, reference):
    messages = [
        {"role": "user", "content": " 你好\n"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who?"},
    ]
    turns = (
        "<|im_start|>user\n 你好\n<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
    )
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"

    def rendered(messages, **options):
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    prompt = default + turns + "<|im_start|>assistant\n"
    assert rendered(messages, add_generation_prompt=True) == prompt
    assert rendered(messages) == default + turns
    system = {"role": "system", "content": "Sei kurz."}
    assert rendered([system, *messages]) == f"<|im_start|>system\nSei kurz.<|im_end|>\n{turns}"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == reference.encode(prompt, allowed_special="all")


def test_generation_settings_are_taken_over(native):
    text_end = len(RANKS)
    settings = GenerationConfig.from_pretrained(native)
    assert settings.eos_token_id == [text_end + 2, text_end]
    assert settings.pad_token_id == text_end
    assert (settings.do_sample, settings.top_k, settings.top_p) == (True, 0, 0.8)
    assert (settings.repetition_penalty, settings.max_new_tokens) == (1.1, 512)


@pytest.mark.parametrize("settings", [None, {"do_sample": False, "top_p": 0.8, "top_k": 0}])
def test_without_sampling_the_model_is_greedy(broken, tmp_path, settings):
    (broken / "generation_config.json").unlink()
    if settings:
        (broken / "generation_config.json").write_text(json.dumps(settings))
    settings = GenerationConfig.from_pretrained(convert(broken, tmp_path / "native"))
    assert not settings.do_sample
    assert settings.eos_token_id == [len(RANKS) + 2, len(RANKS)]


def test_the_vocabulary_is_read_anew_each_time(broken, tmp_path):
    convert(broken, tmp_path / "first")
    other = ranks_of(TEXT.replace("server", "kettle"))
    write_ranks(broken, other)
    (broken / "generation_config.json").unlink()
    tokenizer = AutoTokenizer.from_pretrained(convert(broken, tmp_path / "second"))
    control = {token: len(other) + i for i, token in enumerate(CONTROL)}
    expected = tiktoken.Encoding("x", pat_str=WORDS, mergeable_ranks=other, special_tokens=control)
    assert tokenizer(" the kettle")["input_ids"] == expected.encode(" the kettle")


def test_files_can_be_read_by_others_and_nothing_else_is_left(legacy, tmp_path, capfd):
    target = convert(f"{legacy}/", f"{tmp_path}/new/folder/native/")
    assert [path.name for path in target.parent.iterdir()] == ["native"]
    assert all(file.stat().st_mode & stat.S_IROTH for file in target.iterdir())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_an_existing_target_is_left_alone(legacy, tmp_path, kind):
    target = tmp_path / "native"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "notes.txt").write_text("mine")
    before = listing(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match="already exists"):
        convert(legacy, target)
    assert (listing(tmp_path), sorted(tmp_path.rglob("*"))) == before


def test_a_target_that_appears_meanwhile_is_left_alone(legacy, tmp_path, monkeypatch):
    target = tmp_path / "native"
    write = convert_qwen1._write_tokenizer

    def slow(*args):
        write(*args)
        target.mkdir()

    monkeypatch.setattr(convert_qwen1, "_write_tokenizer", slow)
    with pytest.raises(ConversionError, match="created in the meantime"):
        convert(legacy, target)
    assert list(tmp_path.iterdir()) == [target] and not list(target.iterdir())


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(legacy, tmp_path, monkeypatch, error):
    def full(tensors, file, metadata):
        if "00002" in file.name:
            raise error
        save_file(tensors, file, metadata)

    monkeypatch.setattr(convert_qwen1, "save_file", full)
    expected = ConversionError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if expected is ConversionError else None):
        convert(legacy, tmp_path / "native")
    assert not list(tmp_path.iterdir())


def refusal(source, tmp_path):
    """The message, after a look that nothing was written."""
    before = listing(tmp_path), sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError) as caught:
        convert(source, tmp_path / "native")
    assert (listing(tmp_path), sorted(tmp_path.rglob("*"))) == before
    return str(caught.value)


def test_no_folder(tmp_path):
    message = refusal(tmp_path / "nowhere", tmp_path)
    assert "nowhere is not a folder" in message and "hf download" in message


def test_everything_that_is_missing_is_listed_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty", tmp_path)
    assert "config.json is missing" in message
    assert "qwen.tiktoken is missing" in message
    assert "model.safetensors.index.json" in message


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_config_that_is_no_json_object(broken, tmp_path, content):
    (broken / "config.json").write_text(content, encoding="latin-1")
    assert "config.json" in refusal(broken, tmp_path)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": "qwen2"}, "already native"),
        ({"model_type": None}, "model_type is None"),
        ({"no_bias": False}, "no_bias is False"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"kv_channels": 16}, "kv_channels 16 is not hidden_size 48"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon is True"),
        ({"intermediate_size": 137}, "intermediate_size is odd"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"vocab_size": 512}, "more than config.json's vocab_size 512"),
    ],
)
def test_a_config_that_qwen2_cannot_express(broken, tmp_path, change, phrase):
    (broken / "config.json").write_text(json.dumps(CONFIG | change))
    assert phrase in refusal(broken, tmp_path)


@pytest.mark.parametrize("key", ["hidden_size", "seq_length", "rotary_emb_base", "vocab_size"])
def test_a_config_without_a_needed_number(broken, tmp_path, key):
    (broken / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))
    assert f"{key} is missing" in refusal(broken, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "transformer.wte.weight",
        "lm_head.weight",
        "transformer.h.2.attn.c_attn.bias",
        "transformer.h.2.attn.c_proj.weight",
        "transformer.h.2.mlp.w2.weight",
        "transformer.h.2.ln_1.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path, name):
    weights = tensors(CONFIG)
    del weights[name]
    message = refusal(write_legacy(tmp_path / "legacy", weights), tmp_path)
    assert f"tensor {name} is missing" in message
    assert message.count("\n- ") == 1


def test_a_missing_shard_is_named(broken, tmp_path):
    (broken / "model-00002-of-00002.safetensors").unlink()
    message = refusal(broken, tmp_path)
    assert "model-00002-of-00002.safetensors is missing" in message
    assert message.count("\n- ") == 1


def test_a_missing_index_is_named(broken, tmp_path):
    (broken / "model.safetensors.index.json").unlink()
    assert "model.safetensors.index.json" in refusal(broken, tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {"a": "../model.safetensors"}}'])
def test_an_unusable_index(broken, tmp_path, content):
    (broken / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json cannot be read" in refusal(broken, tmp_path)


def test_a_shard_that_broke_off(broken, tmp_path):
    file = broken / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert f"{file.name} is damaged or incomplete" in refusal(broken, tmp_path)


def test_a_pickle_that_would_run_code(tmp_path):
    source = write_legacy(tmp_path / "legacy", shards=1, suffix=".bin")
    (source / "pytorch_model.bin").unlink()

    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "attacked"), "w")

    torch.save({"transformer.wte.weight": Attack()}, source / "pytorch_model.bin")
    assert "pytorch_model.bin is damaged" in refusal(source, tmp_path)


def test_a_tensor_of_wrong_shape(tmp_path):
    weights = tensors(CONFIG)
    weights["transformer.h.1.mlp.w1.weight"] = torch.zeros(136, 48)
    message = refusal(write_legacy(tmp_path / "legacy", weights), tmp_path)
    assert "transformer.h.1.mlp.w1.weight has shape (136, 48), not (68, 48)" in message


def test_quantized_weights(tmp_path):
    weights = tensors(CONFIG)
    weights["transformer.h.1.mlp.w1.weight"] = torch.zeros(68, 48, dtype=torch.int8)
    message = refusal(write_legacy(tmp_path / "legacy", weights), tmp_path)
    assert "transformer.h.1.mlp.w1.weight is torch.int8" in message


@pytest.mark.parametrize(
    "name",
    ["transformer.visual.proj", "transformer.h.0.mlp.w1.bias", "transformer.h.3.ln_1.weight"],
)
def test_a_tensor_that_the_architecture_does_not_have(tmp_path, name):
    weights = tensors(CONFIG) | {name: torch.zeros(48)}
    message = refusal(write_legacy(tmp_path / "legacy", weights), tmp_path)
    assert f"tensor {name} is unknown" in message


@pytest.mark.parametrize("content", ["{", '{"max_new_tokens": -3}'])
def test_unusable_generation_settings(broken, tmp_path, content):
    (broken / "generation_config.json").write_text(content)
    assert "generation_config.json" in refusal(broken, tmp_path)


def test_no_vocabulary(broken, tmp_path):
    (broken / "qwen.tiktoken").unlink()
    assert "qwen.tiktoken is missing" in refusal(broken, tmp_path)


@pytest.mark.parametrize(
    ("lines", "phrase"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "line 1 is not a base64 token"),
        (b"", "256 single bytes are missing"),
        (b"IQ== 0\nIg== 2\n", "are not consecutive numbers from 0"),
        (b"IQ== 0\nIg== 1\n", "254 of the 256 single bytes are missing"),
    ],
)
def test_an_unusable_vocabulary(broken, tmp_path, lines, phrase):
    (broken / "qwen.tiktoken").write_bytes(lines)
    assert phrase in refusal(broken, tmp_path)


def test_a_token_that_no_merges_lead_to(broken, tmp_path):
    write_ranks(broken, RANKS | {b"qzxj": len(RANKS)})
    phrase = f"1 tokens cannot be merged from shorter ones (the first has rank {len(RANKS)})"
    assert phrase in refusal(broken, tmp_path)


def test_a_vocabulary_that_broke_off_between_two_lines(broken, tmp_path):
    lines = (broken / "qwen.tiktoken").read_bytes().splitlines(keepends=True)
    (broken / "qwen.tiktoken").write_bytes(b"".join(lines[:-5]))
    assert f"qwen.tiktoken has {len(RANKS) - 5} tokens" in refusal(broken, tmp_path)
