"""1.1: a chat model and its tokenizer, from a folder or a hub name."""

import json
import os
from pathlib import Path

from course.grading.environment import CACHED_NAME
from course.grading.mistakes import fail, require
from course.qwen import TINY

OTHER = f"models/{TINY.name}"
"""A second checkpoint in the room's working folder: the same last name, but other sizes, float32,
and one other token."""

MISSING = [
    "no-such-model",
    "models/no-such-model",
    "./no-such-model",
    "../no-such-model",
    "/no/such/folder",
    "~/no/such/folder",
    "no/such/folder",
    "serving-qwen/no-such-model",
]
FILES = ["notes.txt", "models/qwen.gguf"]


# scenes


def make_other():
    """Makes the checkpoint; returns its absolute path."""
    import torch
    from safetensors.torch import save_file

    os.makedirs(OTHER)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (TINY / file).read_text(encoding="utf-8").replace("<|im_start|>", "<|other|>")
        Path(OTHER, file).write_text(text, encoding="utf-8")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "vocab_size": 3072,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    Path(OTHER, "config.json").write_text(json.dumps(config), encoding="utf-8")
    layer = {
        **{f"self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"},
        **{f"self_attn.{name}_proj.bias": (16,) for name in "qkv"},
        "mlp.gate_proj.weight": (24, 16),
        "mlp.up_proj.weight": (24, 16),
        "mlp.down_proj.weight": (16, 24),
        "input_layernorm.weight": (16,),
        "post_attention_layernorm.weight": (16,),
    }
    shapes = {
        "model.embed_tokens.weight": (3072, 16),
        **{f"model.layers.0.{name}": shape for name, shape in layer.items()},
        "model.norm.weight": (16,),
        "lm_head.weight": (3072, 16),
    }
    random = torch.Generator().manual_seed(11)
    weights = {name: torch.randn(shape, generator=random) / 8 for name, shape in shapes.items()}
    save_file(weights, f"{OTHER}/model.safetensors", metadata={"format": "pt"})
    return os.path.abspath(OTHER)


def loaded(answer, inside, name):
    """(model, tokenizer, what a test may see of them). A swapped pair has a test of its own."""
    import torch

    kept = []
    seen = inside.outcome(lambda: kept.append(answer.load_chat_model(name)))
    parts = list(kept[0]) if kept and isinstance(kept[0], list | tuple) else kept
    seen["returned"] = [type(part).__name__ for part in parts]
    seen["models"] = [isinstance(part, torch.nn.Module) for part in parts]
    model = next((part for part in parts if isinstance(part, torch.nn.Module)), None)
    tokenizer = next((part for part in parts if part is not model), None)
    return model, tokenizer, seen


def read_logits(answer, inside):
    import torch

    model, _, seen = loaded(answer, inside, make_other())

    def shape():
        with torch.no_grad():
            ids = torch.tensor([[5, 6, 7]], device=next(model.parameters()).device)
            return list(getattr(model(input_ids=ids), "logits", torch.empty(0)).shape)

    if model is not None:
        seen["shape"] = inside.outcome(shape)
        seen["generates"] = callable(getattr(model, "generate", None))
    return seen


def read_weights(answer, inside, names):
    other = make_other()
    found = []
    for name in names:
        model, _, seen = loaded(answer, inside, other if name == OTHER else name)
        folder = TINY if name == CACHED_NAME else name
        seen["difference"] = None if model is None else difference(model, folder)
        found.append(seen)
    return found


def difference(model, folder):
    """The first weight that is not the file's, in words; "" if there is none."""
    from safetensors.torch import load_file

    state = model.state_dict()
    wanted = load_file(os.path.join(folder, "model.safetensors"))
    for key, tensor in wanted.items():
        # a model without its head, and one in another dtype, have tests of their own
        found = state.get(key, state.get(key.removeprefix("model.")))
        if found is None:
            if key == "lm_head.weight":
                continue
            return f"{key} is missing"
        if found.shape != tensor.shape:
            return f"{key} has the shape {list(found.shape)}, but {list(tensor.shape)} in the file"
        off = (found.float().cpu() - tensor.to(found.dtype).float()).abs().max().item()
        if not off == 0:
            return f"{key} differs from the one in the file by up to {off:.2g}"
    tied = wanted.get("lm_head.weight", wanted["model.embed_tokens.weight"])
    if "lm_head.weight" in state and not state["lm_head.weight"].cpu().equal(tied.to(state["lm_head.weight"].dtype)):
        return "lm_head.weight is not the one in the file"
    return ""


def read_tokenizer(answer, inside):
    from transformers import AutoTokenizer

    def read(it):
        texts = ["你好, what is a token?", "<|other|>", "<|im_start|>"]
        messages = [{"role": "user", "content": "Hi"}]
        found = {f"tokenizer({text!r})": list(it(text)["input_ids"]) for text in texts}
        rendered = it.apply_chat_template(messages, tokenize=False)
        return {**found, "tokenizer.apply_chat_template(...)": rendered}

    found = []
    for folder in (str(TINY), make_other()):
        _, tokenizer, seen = loaded(answer, inside, folder)
        seen["read"] = inside.outcome(read, tokenizer)
        seen["expected"] = read(AutoTokenizer.from_pretrained(folder))
        found.append(seen)
    return found


def read_mode(answer, inside):
    model, _, seen = loaded(answer, inside, make_other())
    if model is not None:
        names = [str(name) for name, part in model.named_modules() if part.training]
        seen["training"] = [name or "the model itself" for name in names[:3]]
    return seen


def read_parameters(answer, inside):
    import torch

    model, _, seen = loaded(answer, inside, str(TINY))
    seen["allowed"] = [["float32", "cpu"]]
    if torch.cuda.is_available():
        seen["allowed"].append(["float16", "cuda"])
    if torch.backends.mps.is_available():
        seen["allowed"].append(["float16", "mps"])
    if model is not None:
        kinds = {(str(each.dtype)[6:], each.device.type) for each in model.parameters()}
        seen["parameters"] = sorted(map(list, kinds))
        seen["device"] = inside.outcome(lambda: str(model.device).split(":")[0])
    return seen


def try_folders(answer, inside, names):
    make_other()
    for name in ("HOME", "USERPROFILE"):
        os.environ[name] = os.getcwd()
    return [loaded(answer, inside, name)[2] for name in names]


def try_nothing(answer, inside, names):
    for name in FILES:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("not a model", encoding="utf-8")
    return [loaded(answer, inside, name)[2] for name in names]


# tests


def sent(name):
    return f"load_chat_model({name!r})"


AT_OTHER = f"/the/room/{OTHER}"


def require_loaded(seen, name):
    if "raised" in seen:
        fail(
            f"load_chat_model raised {seen['raised'][0]} for a model that exists",
            sent=sent(name),
            expected="(model, tokenizer)",
            got=seen["said"],
            where=seen["where"],
        )
    require(
        any(seen["models"]),
        "load_chat_model did not return a model",
        sent=sent(name),
        expected="(model, tokenizer)",
        got=", ".join(seen["returned"]),
    )


def test_returns_a_causal_language_model_and_a_tokenizer(room):
    seen = room.play(read_logits)
    require_loaded(seen, AT_OTHER)
    require(
        seen["models"] == [True, False],
        "load_chat_model should return two values: first the model, then the tokenizer",
        expected="(model, tokenizer)",
        got=f"({', '.join(seen['returned'])})",
    )
    require(
        seen["shape"].get("value") == [1, 3, 3072] and seen["generates"],
        "this model does not predict the next token: load it as a causal language model",
        expected="a model with generate(), and with a logit for each of 3072 tokens",
        got=f"{seen['returned'][0]}, with logits of shape {seen['shape'].get('value', 'unknown')}",
    )


def test_each_call_loads_the_weights_it_is_asked_for(room):
    names = [str(TINY), OTHER]
    for name, seen in zip(names, room.play(read_weights, names=names), strict=True):
        require_loaded(seen, AT_OTHER if name == OTHER else name)
        require(
            seen["difference"] == "",
            "the model's weights are not the ones in the folder passed to this call",
            sent="; then ".join(map(sent, names[: names.index(name) + 1])),
            expected=f"the weights in {name}/model.safetensors, not rounded",
            got=seen["difference"],
        )


def test_the_tokenizer_is_from_the_same_place(room):
    names = [str(TINY), AT_OTHER]
    for name, seen in zip(names, room.play(read_tokenizer), strict=True):
        if "raised" in seen:
            require_loaded(seen, name)
        read = seen["read"].get("value")
        require(
            isinstance(read, dict),
            "load_chat_model did not return a usable tokenizer",
            sent=sent(name),
            expected="(model, tokenizer)",
            got=f"({', '.join(seen['returned'])})",
        )
        calls = "; then ".join(map(sent, names[: names.index(name) + 1]))
        for call, expected in seen["expected"].items():
            require(
                read[call] == expected,
                "the tokenizer is not the one in the model's folder",
                sent=f"{calls}; the tokenizer's {call}",
                expected=expected,
                got=read[call],
            )


def test_the_model_is_in_eval_mode(room):
    seen = room.play(read_mode)
    require_loaded(seen, AT_OTHER)
    require(
        seen["training"] == [],
        "the model is in training mode, where dropout may change its answers",
        expected="training is False in every part of the model",
        got=f"training is True in {', '.join(seen['training'])}",
    )


def test_float32_on_the_cpu(room):
    seen = room.play(read_parameters)
    require_loaded(seen, str(TINY))
    require(
        len(seen["parameters"]) == 1 and seen["parameters"][0] in seen["allowed"],
        "without a GPU, the model's parameters should be float32 on the CPU",
        sent="load_chat_model(a folder whose weights are stored in float16)",
        expected=" or ".join(" on ".join(kind) for kind in seen["allowed"]),
        got=", ".join(" on ".join(kind) for kind in seen["parameters"]),
    )
    require(
        seen["device"].get("value") == seen["parameters"][0][1],
        "model.device is not the device that the parameters are on",
        expected=seen["parameters"][0][1],
        got=seen["device"].get("value", seen["device"]),
    )


def test_a_hub_name_in_the_cache_loads(room):
    [seen] = room.play(read_weights, names=[CACHED_NAME])
    require_loaded(seen, CACHED_NAME)
    require(
        seen["difference"] == "",
        "the model is not the one stored under this name in the hub's cache",
        sent=sent(CACHED_NAME),
        got=seen["difference"],
    )


def test_a_folder_loads_however_its_path_is_written(room):
    names = [OTHER, f"./{OTHER}/", f"~/{OTHER}"]
    for name, seen in zip(names, room.play(try_folders, names=names), strict=True):
        if name[0] == "~" and "raised" in seen:
            fail(
                "a folder in the home directory is not found: expand the ~",
                sent=sent(name),
                expected="(model, tokenizer)",
                got=seen["said"],
                where=seen["where"],
            )
        require_loaded(seen, name)


def test_what_does_not_exist_is_a_file_not_found_error(room):
    names = MISSING + FILES
    for name, seen in zip(names, room.play(try_nothing, names=names), strict=True):
        what = "a path to a file" if name in FILES else "a name that does not exist"
        if "raised" not in seen:
            fail(
                f"load_chat_model did not raise an error for {what}",
                sent=sent(name),
                expected="FileNotFoundError",
                got=f"({', '.join(seen['returned'])})",
            )
        require(
            "FileNotFoundError" in seen["raised"],
            f"{what} raises {seen['raised'][0]} instead of FileNotFoundError",
            sent=sent(name),
            expected="FileNotFoundError",
            got=seen["said"],
            where=seen["where"],
        )


def test_the_error_says_the_name_as_it_was_given(room):
    names = MISSING + FILES
    for name, seen in zip(names, room.play(try_nothing, names=names), strict=True):
        # that there is a FileNotFoundError at all has a test of its own
        if "FileNotFoundError" in seen.get("raised", []):
            require(
                name in seen["message"],
                "the FileNotFoundError does not contain the name exactly as it was given",
                sent=sent(name),
                expected=f"a message that contains {name}",
                got=seen["message"] or "an error without a message",
                where=seen["where"],
            )


def test_a_path_is_never_looked_up_at_the_hub(room):
    names = [start + CACHED_NAME for start in ("./", "../", "~/", "/", "models/")]
    for name, seen in zip(names, room.play(try_nothing, names=names), strict=True):
        require(
            "raised" in seen,
            "load_chat_model did not raise an error for a missing folder: a path is never a hub name",
            sent=f"{sent(name)}; the hub has a model named {CACHED_NAME}",
            expected="FileNotFoundError",
            got=f"({', '.join(seen['returned'])})",
        )
