"""Where a model comes from, with a hub of our own on the loopback instead of the real ones."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from course.qwen import TINY
from course.qwen.models import ModelUnavailable, model_path
from solutions.stage1.load_model import load_chat_model

ROOT = Path(__file__).parents[2]
NAME = "Some/Model-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("COURSE_MODEL", "COURSE_HUB"):
        monkeypatch.delenv(name, raising=False)


def write_model(folder, *, model_type="qwen2", shards=None):
    folder.mkdir(parents=True)
    config = {"model_type": model_type, "num_hidden_layers": 0, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    weights = {name: torch.zeros(50) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    if shards is None:
        save_file(weights, folder / "model.safetensors")
        return folder
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for file in files:
        save_file(weights, folder / file)
    index = {"weight_map": {f"tensor{i}": file for i, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def cached_model(hub_home, **layout):
    """As Hugging Face's cache holds a model that was downloaded."""
    store = hub_home / "hub" / f"models--{NAME.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    return write_model(store / "snapshots" / COMMIT, **layout)


def ask(tmp_path, name=NAME, **settings):
    """model_path in a process of its own: the hub's library reads its settings at import."""
    ours = ("HF_", "COURSE_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    env |= {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "COURSE_MODEL": name,
    } | {key: str(value) for key, value in settings.items()}
    code = (
        "from course.qwen.models import ModelUnavailable, model_path\n"
        "try:\n    print(model_path())\n"
        "except ModelUnavailable as error:\n    print('UNAVAILABLE', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip(), done.stderr.decode()


@pytest.fixture
def hub(tmp_path):
    """A hub with one model, in hub.folder; hub.asked lists the paths that were asked for."""
    folder = write_model(tmp_path / "served", shards=2)
    (folder / "pytorch_model.bin").write_bytes(b"the weights once more")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            path = self.path.split("?")[0]
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            if path == f"/api/models/{NAME}/revision/main" or path == f"/api/models/{NAME}":
                siblings = [{"rfilename": name} for name in files]
                self.answer(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}))
            elif path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": tag(data)} for name, data in files.items()
                ]
                self.answer(200, json.dumps(tree))
            elif path.startswith(f"/{NAME}/resolve/") and (data := files.get(Path(path).name)):
                self.answer(200, data, {"ETag": f'"{tag(data)}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, "{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, status, body, headers=None):
            body = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    def tag(data):
        return hashlib.sha1(data).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.folder = [], folder
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_without_a_setting_it_is_the_tiny_model():
    assert model_path() == str(TINY)


def test_an_empty_setting_is_no_setting(monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", "")
    assert model_path() == str(TINY)


def test_a_folder(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "mine" / "model")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (folder, str(folder), "model", "./model", "../mine/model/", "~/mine/model"):
        assert Path(model_path(name)).is_absolute()
        assert Path(model_path(name)).samefile(folder)
    monkeypatch.setenv("COURSE_MODEL", "mine/model")
    monkeypatch.chdir(tmp_path)
    assert model_path() == str(tmp_path / "mine" / "model")
    assert model_path(TINY) == str(TINY)


def test_shards_count_as_weights(tmp_path):
    folder = write_model(tmp_path / "model", shards=2)
    assert model_path(folder) == str(folder)


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no/such", "~/no", "a/b/c", "no/such/"])
def test_a_path_is_never_looked_up(monkeypatch, name):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **_: asked.append(args))
    with pytest.raises(ModelUnavailable) as caught:
        model_path(name)
    assert str(caught.value).startswith(f"There is no folder {name}.")
    assert "unset COURSE_MODEL" in str(caught.value)
    assert asked == []


@pytest.mark.parametrize(
    ("file", "phrase"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "the tokenizer is missing"),
        ("model.safetensors.index.json", "the weights are missing"),
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors is missing"),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(tmp_path, file, phrase):
    folder = write_model(tmp_path / "model", shards=2)
    (folder / file).unlink()
    with pytest.raises(ModelUnavailable) as caught:
        model_path(folder)
    assert isinstance(caught.value, FileNotFoundError)
    assert str(folder) in str(caught.value) and f"- {phrase}" in str(caught.value)
    assert str(caught.value).count("missing") == 1


def set_in(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def lfs_pointer(folder):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    (folder / "model.safetensors").write_text(text)


def cut_off(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def tied_no_more(folder):
    set_in(folder / "config.json", tie_word_embeddings=False)


def one_layer_more(folder):
    set_in(folder / "config.json", num_hidden_layers=1)


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        (lfs_pointer, "model.safetensors is a Git LFS pointer, not the weights: run git lfs pull"),
        (cut_off, "model.safetensors cannot be read: it has"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"PK" * 50), "not a whole safetensors"),
        (tied_no_more, "would be filled with random numbers: lm_head.weight"),
        (one_layer_more, "would be filled with random numbers: model.layers.0.self_attn.q_proj.weight"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "there is no chat template"),
        (
            lambda folder: set_in(folder / "config.json", quantization_config={"quant_method": "gptq"}),
            "the weights are quantized (gptq)",
        ),
        (
            lambda folder: set_in(folder / "config.json", torch_dtype="torch.bfloat16"),
            'change it to "bfloat16"',
        ),
    ],
)
def test_a_checkpoint_that_would_not_serve_is_one_sentence(tmp_path, damage, phrase):
    folder = write_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelUnavailable) as caught:
        model_path(folder)
    wrong = [line for line in str(caught.value).splitlines() if phrase in line]
    assert len(wrong) == 1 and wrong[0].startswith("- "), str(caught.value)


def test_the_reference_of_1_1_loads_no_random_weights(tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(TINY, folder)
    set_in(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ValueError, match="lacks weights: lm_head.weight"):
        load_chat_model(str(folder))


def test_the_reference_of_1_1_asks_the_hub_once(tmp_path, hub):
    code = (
        "from solutions.stage1.load_model import load_chat_model\n"
        "try:\n    load_chat_model('Nobody/Nothing')\n"
        "except FileNotFoundError as error:\n    print(error)\n"
    )

    def said(endpoint):
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint}
        env.pop("HF_HUB_OFFLINE", None)
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)

    assert "the hub has no model of that name" in said(hub.url).stdout
    assert [path for path in hub.asked if "Nobody" in path] == ["/api/models/Nobody/Nothing"]
    nobody = said("http://127.0.0.1:9")
    assert "the hub cannot be reached" in nobody.stdout and "Retrying" not in nobody.stderr


def test_a_broken_index_is_said(tmp_path):
    folder = write_model(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelUnavailable, match="index.json cannot be read"):
        model_path(folder)


def test_a_folder_of_the_first_generation_is_to_be_converted(tmp_path):
    folder = write_model(tmp_path / "model", model_type="qwen")
    with pytest.raises(ModelUnavailable, match=f"course convert-qwen1 {folder} "):
        model_path(folder)


def test_a_cached_name_needs_no_network(tmp_path):
    folder = cached_model(tmp_path / "home")
    assert ask(tmp_path, HF_HUB_OFFLINE=1)[0] == str(folder)


def test_a_cached_name_is_not_looked_up(tmp_path, hub):
    folder = cached_model(tmp_path / "home")
    assert ask(tmp_path, HF_ENDPOINT=hub.url)[0] == str(folder)
    assert hub.asked == []


def test_a_name_is_downloaded_once_with_a_progress_bar(tmp_path, hub):
    folder, shown = ask(tmp_path, HF_ENDPOINT=hub.url)
    assert model_path(folder) == folder
    assert "100%" in shown
    # not the second copy of the weights
    assert not (Path(folder) / "pytorch_model.bin").exists()
    hub.asked.clear()
    assert ask(tmp_path, HF_ENDPOINT=hub.url)[0] == folder
    assert hub.asked == []


def test_a_download_that_broke_off_is_completed(tmp_path, hub):
    folder = Path(ask(tmp_path, HF_ENDPOINT=hub.url)[0])
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert ask(tmp_path, HF_ENDPOINT=hub.url)[0] == str(folder)
    assert (folder / "model-00002-of-00002.safetensors").is_file()


def test_the_first_generation_is_not_downloaded(tmp_path, hub):
    (hub.folder / "config.json").write_text('{"model_type": "qwen"}')
    answer, _ = ask(tmp_path, HF_ENDPOINT=hub.url)
    assert f"hf download {NAME}" in answer and "course convert-qwen1" in answer
    assert not [path for path in hub.asked if path.endswith(".safetensors")]


def unavailable(answer, *phrases):
    for phrase in (
        f"UNAVAILABLE The model {NAME} is not on this computer",
        "unset COURSE_MODEL",
        "COURSE_MODEL=/path",
        *phrases,
    ):
        assert phrase in answer


def test_no_copy_and_no_network(tmp_path, hub):
    hub.shutdown()
    hub.server_close()  # nobody listens at its address now
    answer, shown = ask(tmp_path, HF_ENDPOINT=hub.url)
    unavailable(answer, "could not be downloaded from Hugging Face", "COURSE_HUB=modelscope")
    assert "Traceback" not in answer + shown


def test_no_copy_and_offline_by_setting(tmp_path):
    answer, _ = ask(tmp_path, HF_HUB_OFFLINE=1)
    unavailable(answer, "HF_HUB_OFFLINE")


def test_a_name_that_the_hub_does_not_know(tmp_path, hub):
    answer, _ = ask(tmp_path, "Nobody/Nothing", HF_ENDPOINT=hub.url)
    assert "The model Nobody/Nothing is not on this computer" in answer and "404" in answer


def test_an_incomplete_copy_and_no_network(tmp_path):
    (cached_model(tmp_path / "home") / "model.safetensors").unlink()
    answer, _ = ask(tmp_path, HF_HUB_OFFLINE=1)
    assert "UNAVAILABLE" in answer and "the weights are missing" in answer


def test_a_hub_that_the_course_does_not_know(tmp_path):
    answer, _ = ask(tmp_path, COURSE_HUB="github")
    assert answer == (
        "UNAVAILABLE COURSE_HUB is 'github', but the course supports only: huggingface, modelscope."
        " Set it to one of them."
    )


def modelscope(tmp_path, body):
    """A stand-in for the package, of which the course calls one function."""
    (tmp_path / "stand-in").mkdir()
    (tmp_path / "stand-in" / "modelscope.py").write_text(body)
    return {"COURSE_HUB": "modelscope", "PYTHONPATH": f"{tmp_path / 'stand-in'}{os.pathsep}{ROOT}"}


def test_modelscope_downloads(tmp_path):
    folder = write_model(tmp_path / "model")
    settings = modelscope(
        tmp_path,
        "def snapshot_download(name, *, allow_patterns, local_files_only=False):\n"
        f"    assert name == {NAME!r}\n"
        "    if local_files_only:\n"
        "        raise ValueError('not here')\n"
        f"    return {str(folder)!r}\n",
    )
    assert ask(tmp_path, HF_HUB_OFFLINE=1, **settings)[0] == str(folder)


def test_modelscope_without_network(tmp_path):
    settings = modelscope(
        tmp_path,
        "def snapshot_download(name, *, allow_patterns, local_files_only=False):\n"
        "    raise RuntimeError('name resolution failed')\n",
    )
    answer, _ = ask(tmp_path, **settings)
    unavailable(answer, "downloaded from ModelScope", "name resolution failed", "COURSE_HUB=huggingface")


def test_modelscope_is_not_installed(tmp_path):
    settings = modelscope(tmp_path, "raise ModuleNotFoundError('modelscope')")
    answer, _ = ask(tmp_path, **settings)
    assert answer.endswith("COURSE_HUB=modelscope needs one more package: pip install modelscope")
    assert "\n" not in answer
