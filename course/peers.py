"""The course's last server beside `transformers serve`, on the same weights, in the same run. `make bench PEERS=1`.

Each server answers the same prompt, greedily, with 64 tokens, to 1 to 64 clients at once. All run at the same time,
but those that are not being measured are stopped (SIGSTOP), so that they cost nothing. In each round each of them is
measured once at each number of clients; what is shown is the median of the rounds, and the median of the ratios
that the rounds gave, which a busy computer disturbs least. The CPU time a token is that of a server's processes.

The peers run with what `transformers serve --help` offers for a CPU: float32, as ours, and for continuous batching as
many blocks as 64 answers need and 256 tokens a pass. Each process computes in one thread, which is the fastest for
the tiny model. All are warmed up by a round that is not counted. A server that does not start or answer is left out.

`--gpu` measures on CUDA, in bfloat16, with random weights in the shape of Qwen1.5-1.8B-Chat whose answers are words;
`--gpu --shape small` tries that script on a CPU.

    python -m course.peers [--rounds 5] [--clients 1 4 16 64 256] [--servers NAME ...] [--json FILE] [--gpu]

Not covered: servers on other machines; sampled answers; prompts of different lengths.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from course.manifest import ROOT

TOKENS = 64
CLIENTS = (1, 4, 16, 64, 256)
FEWEST_ANSWERS = 8
"""In each round, at each number of clients: fewer clients ask several times, one after the other."""
MESSAGES = [{"role": "user", "content": "Tell me a story"}]
PATH = "/v1/chat/completions"
START_S = 300
OURS, BATCHING, SERVE = "stage 4", "transformers, batching", "transformers"
"""The second is `transformers serve --continuous-batching`, the third is without."""
MOST_CLIENTS = {BATCHING: 64, SERVE: 64}
"""They take more, and each round would take minutes."""
MOST_CLIENTS_GPU = {BATCHING: 64, SERVE: 4}
PEER_OPTIONS = {
    "cpu": {BATCHING: "--device cpu --dtype float32 --cb-num-blocks 64 --cb-max-batch-tokens 256"},
    "cuda": {
        BATCHING: "--device cuda --dtype bfloat16 --cb-use-cuda-graph --cb-max-memory-percent 0.3",
        SERVE: "--device cuda --dtype bfloat16",
    },
}
PEER_OPTIONS["cpu"][SERVE] = "--device cpu --dtype float32"
SHAPES = {
    "1.8B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5504},
    "small": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
}
SHAPES["1.8B"]["vocab_size"], SHAPES["small"]["vocab_size"] = 151_936, 4096


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m course.peers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--servers", nargs="+", choices=STARTS, default=[OURS, BATCHING, SERVE])
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--shape", choices=SHAPES, default="1.8B", help="with --gpu: the random model's shape")
    options = parser.parse_args()
    console = Console(soft_wrap=True, stderr=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        console.print("Writing the checkpoint.")
        checkpoint = os.path.join(folder, "model")
        if options.gpu:
            write_random(checkpoint, SHAPES[options.shape])
        else:
            write_float32(checkpoint)
        servers = {}
        for name in options.servers:
            servers[name] = stack.enter_context(STARTS[name](name, checkpoint, folder, options.gpu))
        for name, server in list(servers.items()):
            try:
                console.print(f"{name}: answers after {server.wait():.0f} s: {' '.join(server.command)}")
                server.pause()
            except NoFigures as problem:
                console.print(str(problem), markup=False)
                del servers[name]
        client = stack.enter_context(Client())
        most = MOST_CLIENTS_GPU if options.gpu else MOST_CLIENTS
        warm_ups = 2 if options.gpu else 1  # each number of rows becomes a CUDA graph when it is first seen
        result = {"machine": machine(), "commands": {name: server.command for name, server in servers.items()}}
        result["tokens"], rows = TOKENS, []
        for number in range(1 - warm_ups, options.rounds + 1):
            console.print(f"Round {number} of {options.rounds}." if number > 0 else "Warming up.")
            found = measure(servers, client, number, options.clients, most, console.print)
            if number > 0:
                rows += found
                result |= {"rounds": number, **summary(rows)}
                if options.json:  # after each, for what ends early
                    options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    show(result, Console(soft_wrap=True))
    return 0


def write_float32(folder):
    """The tiny Qwen as float32: the shipped file is float16, and `transformers serve` is not to pay for that."""
    from course.qwen.models import tiny

    model, tokenizer = tiny()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_random(folder, shape):
    """Random bfloat16 weights with the tiny Qwen's tokenizer. All that it says is whole English words, so that each
    token is text that can be shown at once."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    from course.qwen import TINY

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ends = GenerationConfig.from_pretrained(TINY).eos_token_id
    heads = shape["num_attention_heads"]
    options = {"num_key_value_heads": heads, "max_position_embeddings": 1024, "tie_word_embeddings": False}
    config = Qwen2Config(**shape, **options, eos_token_id=ends[0])
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    words = [
        id for word, id in tokenizer.get_vocab().items() if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha()
    ]
    with torch.no_grad():
        of_words = model.lm_head.weight[words].clone()
        model.lm_head.weight.zero_()[words] = of_words
    model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class NoFigures(Exception):
    """A server did not start, or did not answer as it was asked to. It is left out, the others are measured."""


class Server:
    """A server in a process of its own, with those that it starts."""

    def __init__(self, name, command, port, model, ready, **environment):
        self.name, self.command, self.port, self.model, self.ready = name, command, port, model, ready
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT
        )

    def wait(self):
        """Returns when it is ready to answer, with the seconds for which this waited."""
        began = time.monotonic()
        while time.monotonic() - began < START_S and self._process.poll() is None:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self.ready}", timeout=5) as answer:
                    if answer.status == 200:
                        return time.monotonic() - began
            time.sleep(0.1)
        self._log.seek(0)
        raise NoFigures(f"{self.name} did not start:\n{self._log.read()[-4000:].decode('utf-8', 'replace')}")

    def _processes(self):
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def pause(self):
        for process in self._processes():
            process.suspend()

    def resume(self):
        for process in self._processes():
            process.resume()

    def cpu_s(self):
        return sum(sum(process.cpu_times()[:2]) for process in self._processes())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.resume()
        processes = self._processes()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in processes[1:]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._log.close()


def _ours(name, checkpoint, folder, gpu):
    port = _free_port()
    stage = "3" if name == "stage 3" else "4"
    command = [sys.executable, "-P", "-m", "course.lessons", stage, "--solution", "--port", str(port)]
    environment = {"COURSE_WORK": os.path.join(folder, "work"), "COURSE_SLOTS": "64", "COURSE_WAITING": "1024"}
    environment["COURSE_TUNED"] = "0" if "4.5" in name else "1"
    environment["COURSE_THREAD"] = "1" if "thread" in name else "0"
    if gpu:
        environment["COURSE_MODEL"] = checkpoint
    return Server(name, command, port, "tiny-qwen", "/health" if stage == "3" else "/ready", **environment)


def _peer(name, checkpoint, folder, gpu):
    import torch

    port = _free_port()
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", checkpoint, "--port", str(port)]
    command += ["--continuous-batching"] * (name == BATCHING) + PEER_OPTIONS[device][name].split()
    return Server(name, command, port, checkpoint, "/health")


STARTS = {
    OURS: _ours,
    "stage 4, 4.5's slot model": _ours,
    "stage 4, in a thread": _ours,
    "stage 3": _ours,
    BATCHING: _peer,
    SERVE: _peer,
}


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Client:
    """The process that asks."""

    def __enter__(self):
        command = [sys.executable, "-m", "course.peers_client"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        return self

    def ask(self, server, clients, requests):
        """What `course.peers_client` found, with the CPU time that the server took."""
        body = {"model": server.model, "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0, "stream": True}
        job = {"port": server.port, "path": PATH, "body": body, "clients": clients, "requests": requests}
        server.resume()
        before = server.cpu_s()
        print(json.dumps(job), file=self._process.stdin, flush=True)
        found = json.loads(self._process.stdout.readline() or '{"problems": ["the client ended"]}')
        found["cpu_s"] = server.cpu_s() - before
        server.pause()
        problems = found["problems"] or sorted(
            {f"it ended by {reason}" for reason in found["reasons"]} - {"it ended by length"}
        )
        if problems:
            raise NoFigures(f"{server.name}, {clients} clients: {len(problems)} answers went wrong: {problems[0]}")
        return found

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()


def measure(servers, client, number, counts, most, say):
    """One round: [{"server", "clients", "round", "texts", figures ...}, ...]."""
    rows = []
    for clients in counts:
        # who comes first changes: what is first after a pause may be slower
        names = list(servers)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if clients > most.get(name, clients):
                continue
            requests = max(1, FEWEST_ANSWERS // clients) if number > 0 else 1
            try:
                found = client.ask(servers[name], clients, requests)
            except NoFigures as problem:
                say(str(problem), markup=False)
                continue
            row = {"server": name, "clients": clients, "round": number, "texts": found["texts"]}
            rows.append({**row, **figures(found, clients * requests)})
    return rows


def figures(found, answers):
    tokens = answers * TOKENS
    return {
        "tokens_per_s": tokens / found["seconds"],
        "ttft_p50_ms": 1000 * statistics.median(found["ttft_s"]),
        "ttft_p95_ms": 1000 * p95(found["ttft_s"]),
        "itl_p95_ms": 1000 * p95(found["gaps_s"]) if found["gaps_s"] else math.nan,
        "cpu_us_per_token": max(1e6 * found["cpu_s"] / tokens, 1e-3),
    }


FIGURES = ("tokens_per_s", "ttft_p50_ms", "ttft_p95_ms", "itl_p95_ms", "cpu_us_per_token")


def p95(values):
    """The smallest value that at least 95 % of them do not exceed."""
    values = sorted(values)
    return values[-(-len(values) * 95 // 100) - 1]


def summary(rows):
    """{"servers": medians, "ratios": our figures divided by each other server's, medians of the rounds' ratios}.

    Ours is stage 4, or else the first that was measured.
    """
    by = {}
    for row in rows:
        by.setdefault((row["server"], row["clients"]), []).append(row)
    servers = [
        {"server": name, "clients": clients, **{key: statistics.median(row[key] for row in group) for key in FIGURES}}
        for (name, clients), group in by.items()
    ]
    names = list(dict.fromkeys(row["server"] for row in rows))
    ours, ratios = OURS if OURS in names else names[0] if names else None, []
    for (name, clients), group in by.items():
        mine = {row["round"]: row for row in by.get((ours, clients), [])}
        pairs = [(mine[row["round"]], row) for row in group if row["round"] in mine]
        if name != ours and pairs:
            medians = {key: statistics.median(a[key] / b[key] for a, b in pairs) for key in FIGURES}
            ratios.append({"server": f"{ours} / {name}", "clients": clients, **medians})
    texts = sorted(set().union(*(row["texts"] for row in rows)))
    each_round = [{key: row[key] for key in ("server", "clients", "round", *FIGURES)} for row in rows]
    return {"servers": servers, "ratios": ratios, "texts": texts, "each_round": each_round}


def machine():
    found = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("torch", "transformers", "fastapi", "uvicorn"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    import torch

    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def show(result, console):
    console.print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    console.print(f"{TOKENS} tokens per answer, greedy, median of {result['rounds']} rounds")
    texts = len(result["texts"])
    console.print("All answers have the same text.\n" if texts == 1 else f"There are {texts} different answers.\n")
    columns = ("tokens/s", "TTFT p50, ms", "p95", "between tokens p95, ms", "CPU per token, µs")
    table = _table("server", columns)
    for row in sorted(result["servers"], key=lambda row: row["clients"]):
        shown = [f"{row[key]:,.1f}" if key.endswith("ms") else f"{row[key]:,.0f}" for key in FIGURES]
        table.add_row(str(row["clients"]), row["server"], *shown)
    console.print(table)
    console.print()
    table = _table("ratio", columns)
    for row in sorted(result["ratios"], key=lambda row: row["clients"]):
        table.add_row(str(row["clients"]), row["server"], *(f"{row[key]:.2f}" for key in FIGURES))
    console.print(table)


def _table(name, columns):
    table = Table("clients", box=None)
    table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    sys.exit(main())
