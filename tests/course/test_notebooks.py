"""The notebooks: their form; run top to bottom, solved and unsolved, in a fresh kernel."""

import ast
import copy
import dis
import itertools
import json
import math
import os
import re
import subprocess
import sys
import types

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from course import lab, stubs
from course.manifest import ROOT, exercises, find
from course.qwen import TINY

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]
CELL_LIMIT_S = 300
MOST_LINES, LINE_WIDTH = 8, 110
SHORT = 24
PLOTS = r"^ *plots\.(waits|arrivals|loads|calls|steps|caches|flood|figures)\("
# what JupyterLab writes into a notebook that is only opened: so it is no change for git
LANGUAGE_INFO = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
    "version": "3",
}

# what a lesson shows by running it, and its text relies on
SHOWS = {
    "00_start_here": {
        "hello": "<|im_start|>assistant\n你好！",
        "half-a-character": "\N{REPLACEMENT CHARACTER}",
        "template": "<|im_start|>user",
        "look-0-1": "Ελληνικά",
        "temperature": "greedy            The ",
        "steps": "<|im_end|>",
        "able": "> Tell me a story\nOnce",
    },
    "stage1_one_endpoint": {
        "typo": "Repo id must be in the form",
        "dtype": "torch.float16",
        "missing": "missing: {'lm_head.weight'}",
        "chat-is-gone": "no attribute 'chat'",
        "sampling": '"do_sample": true',
        "temperature-zero": "ValueError",
        "in-a-thread": (
            "\nthe notebook's loop, awaited client:  {'status': 'ok'}\n"
            "the notebook's loop, ordinary client: ReadTimeout\n"
            "a thread, ordinary client:            {'status': 'ok'}\n"
        ),
        "under-main": "500 Internal Server Error\nNameError: name 'model' is not defined",
        "blocked": "longest wait for /health",
        "threads": "8 thread(s): the users wait ",
        "plain-httpx": "busy  no error: 503",
        "injection": "3 turns",
        "look-1-2": "assistant  Your name is Alice.",
        "serve-own": "open the chat page",
        "look-1-4": "away  ChatError",
        "look-own": "in 1 piece(s)",
        "look-1-5": "3 turns",
        "two-servers": "plain template  {'control ids': 9, 'result': \"Arr, matey! ",
    },
    "stage2a_streaming": {
        "passes": "150 passes",
        "nothing-streams": "pieces, the first after",
        "loop-is-blocked": "reading a streamer: 0 ticks",
        "pool": " 4 readers: 4 have their whole answer",
        "lost-error": "Empty(''), after two seconds\nthe thread:  ValueError",
        "leaver": "the model made 150",
        "broken-characters": "\N{REPLACEMENT CHARACTER}",
        "held-back": ": 'ぬりえをぬる '",
        "nothing-skipped": "You are a helpful assistant.<|im_end|>\n<|im_start|>user\n你好<|im_end|>",
        "empty-prompt": "RuntimeError: cannot reshape tensor of 0 elements",
        "window": " tokens, window ",
        "quadratic": " times as long\n2000 tokens: ",
        "decode-stream": "'を', None]\n['', 'ぬりえを\N{REPLACEMENT CHARACTER}']",
        "lost-newlines": "read: 'Roses are red,violets are The end is '",
        "late-error": "200\n'data: {\"token\": \"Once\"}'\n''\nRemoteProtocolError",
        "await-generator": "200\nRemoteProtocolError",
        "never-reads": "16 pieces are waiting, in a queue with room for 16",
        "look-2-2": "event: done",
        "curl": " s  event: done",
        "browser": "<iframe",
        "own-leaver": "the client left after its first event",
    },
    "stage2b_limits_and_sockets": {
        "above-or-below": (
            "/above  [200, 200, 200, 200, 200, 200]\n"
            "/below  [200, 200, 200, 429, 429, 429]\n"
            "/named  [500, 500, 500, 500, 500, 500]\n"
        ),
        "rubbish": "100 of 100",
        "retry-after": "[500, 500, 500, 429] 60",
        "socket-limit": "must be an instance of starlette.requests.Request",
        "four-workers": "of 300 got through",
        "with-redis": "with Redis, 50 of 300 got through",
        "look-2-3": "429 ",
        "deaf": "came before the last one\nand then: received 1011 (internal error) KeyError('prompt')",
        "leaver-log": "Exception in ASGI application",
        "look-2-4": "'stopped': True",
        "socket-limited": "each one counts as a request. Try again in",
    },
    "stage2c_workers_and_measuring": {
        "async-def": "times as long as one",
        "cpu-bound": "four processes count faster",
        "torch-threads": "four threads multiply faster",
        "three-servers": "await asyncio.to_thread(next, left, None)",
        "object": "You must pass the application as an import string",
        "ctrl-c": "None: after 4 s it is still streaming\ntimeout_graceful_shutdown=1: after 4 s it has ended",
        "look-2-5": "after one Ctrl-C, 0 of 4 are left",
        "limit-of-fifty": "a limit of 50 in memory: 200 got through, [50, 50, 50, 50]",
        "look-2-6": "of 16 clients at once, each process took",
        "decided": "More workers, more throughput",
        "yours": "yours             16",
    },
    "stage3a_four_actions": {
        "four-at-once": "one after the other",
        "to-thread": "Slow: str\nAsks: coroutine",
        "collected": "20 pieces were made, 1 chunk arrived",
        "works-on": "; 20 steps ran in total",
        "not-closed": "GEN_SUSPENDED, given back: []",
        "already-executing": "ValueError: generator already executing, GEN_RUNNING",
        "look-3-1": "times half a second, together",
        "look-leaver": "GEN_CLOSED, given back: ['the place in the cache']",
        "errors": "400  [Errno 2] No such file or directory: '/",
        "unnoticed": "; 20 steps ran in total\nHas the client left? True",
        "look-3-2": "500  Internal Server Error\nin the log: KeyError: 'voice'\nin the log: FileNotFoundError: ",
        "look-context": 'response_context Answer  200  {"text":"hello"}\nresponse_context Answer  500  ',
        "look-own-leaver": "0 errors in the log",
        "loads": "2 models, ",
        "workers": "5 loads, but only two are needed",
        "shared-self": "Ann reads: Hello, Bob!",
        "silent": "answered by: the first\nthe documentation of the body: None",
        "lifespan": "the app is made, a model is loaded, a request, a request, and released",
        "look-3-3": 'an app made: 0 models\nstarted: 1 models\n200 "Hello, Ann!"\n200 "Hello, Bob!"\n422 ',
        "refused": "TypeError: dict is not a subclass of ConfigHandler",
        "program-runs": '"content":"你好！',
    },
    "stage3b_logs": {
        "log-id": "A: threading.local says B, ContextVar A",
        "other-threads": "asyncio.to_thread        A\nloop.run_in_executor     nothing\n",
        "cpu-percent": "[CPU: 0.0]",
        "cost": "with the figures, a line takes",
        "forged": "[level:CRITICAL] the price of bread is now 0",
        "doubled": "run 1\nrun 2\nrun 2\nrun 3\nrun 3\nrun 3\n",
        "four-workers": "a file that grows: 0 of 2000 lines are lost, 1 file(s)",
        "middleware": "sends {'type': 'http.response.start'",
        "look-3-4": "[logid:default]",
        "grep": "asked: What is flour?",
        "attack": "sent from-the-shop-1 | got from-the-shop-1",
        "own-cost": " µs, while load hangs",
    },
    "stage3c_openai": {
        "tokens": "stop: thousand",
        "leaks": "by_text   has the stop: False  ends with",
        "generators": "C [0.267295241355896, 0.8725283145904541",
        "one-seed": "B asks, too [",
        "always-stop": "and writes tokens, not letters.', 'finish_reason': 'stop'}",
        "the-end": "the last id is 3071",
        "look-3-5": "leaks: False",
        "seeds": "None ",
        "look-3-6": "tokens, length: Once",
        "window": "ValueError: ",
        "one-quote": 'APIError: the "GPU" is gone',
        "no-done": "cut_off      'Once upon', finish_reason None, no error",
        "look-3-7": "data: [DONE]\n\n",
        "errors": "NotFoundError        {'message': ",
        "leaver": "stream False: ",
        "serve": "tiny-qwen | An endpoint is a path of the server",
        "curl": "data: [DONE]\n\n",
        "logid": "asked: What is an endpoint?",
        "another": 'parrot | Once he said "quack"',
    },
    "stage4a_batching": {
        "costs": "A step for 16 takes ",
        "static": "P P P P S S S S S S S S S S S S S S S S S S S S S S S P P P S",
        "prefill": "16 newcomers in a row: a pause of ",
        "look-4-1": "30 steps become 23",
        "crowd": "P S S S S S S P P P P S P P P P S P P S",
        "leaving": "P P P P S S S S S P ",
        "seeds": "the same among others: True",
        "speed": "16 at once: ",
        "cache": "the earlier keys have changed: False",
        "without": "with the cache",
        "slots": "next position ",
        "look-4-5": "tuned: ",
        "packed": "float16 loses something: False",
        "joined": "three products in each layer",
        "prefix": "tokens are the same in every prompt",
    },
    "stage4b_overload": {
        "capacity": " answers a second",
        "patience": "0 were refused at once",
        "no-finally": "/       503",
        "overtaken": "served: ['Bob'] | Ann is still waiting: True",
        "receive": "{'type': 'http.disconnect'}",
        "look-4-2": " may wait: of ",
        "average": "the last tenth",
        "histogram": 'ttft_seconds_bucket{le="+Inf"}',
        "leavers": "counted: ['patient']",
        "look-4-3": 'llm_requests_total{outcome="cancelled"} 1.0',
        "serve": "/dashboard",
        "watch": " 64 clients: ",
        "thread-or-process": "16 clients: process ",
    },
    "stage4c_more_machines": {
        "pickled": "the function            ",
        "by-name": "Can't get attribute 'load'",
        "sharing-out": "by_turns ",
        "cost": "on two free cores",
        "look-4-4": "2 copies: ready after",
        "questions": "ends with data: [DONE]",
        "launches": "The figures below were measured on one.",
        "audit": "passed: 27",
    },
}

# slow, and the same whether a learner has solved anything: only the solved run has them
LEFT_OUT = {
    "stage1_one_endpoint": ["missing", "under-main", "temperature-zero", "threads"],
    "stage2a_streaming": ["loop-is-blocked", "pool", "lost-error", "leaver", "quadratic", "window", "never-reads"],
    "stage2b_limits_and_sockets": ["four-workers", "with-redis"],
    "stage2c_workers_and_measuring": ["cpu-bound", "torch-threads", "object", "ctrl-c", "who-waits", "sixteen-at-once"],
    "stage3a_four_actions": ["workers"],
    "stage3c_openai": ["no-done"],
    "stage4a_batching": ["without", "packed", "joined"],
    "stage4c_more_machines": ["by-name", "sharing-out", "questions", "peer"],
}


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def exercise_cells(notebook):
    for number, cell in enumerate(notebook.cells):
        id = stubs.exercise_of(cell.source) if cell.cell_type == "code" else None
        if id:
            yield number, id


# form


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {
        "display_name": lab.KERNEL_TITLE,
        "language": "python",
        "name": lab.KERNEL,
    }
    assert notebook.metadata.language_info == LANGUAGE_INFO
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
        # a name that says what the cell is for, and not one that a tool makes up
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell.id), cell.id


def test_exercise_cells_are_the_stubs_of_all_exercises_in_order():
    done = subprocess.run(
        [sys.executable, "-m", "course.stubs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [id for name in NAMES for _, id in exercise_cells(read(name))]
    assert found == list(exercises())


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_has_a_header_before_it_and_its_check_after_it(name):
    notebook = read(name)
    cells = notebook.cells
    for number, id in exercise_cells(notebook):
        header = cells[number - 1].source
        assert f"Exercise {id}:" in header and "You will build" in header
        assert re.search(r"Difficulty [●○]{5} · Importance [●○]{5} · \d+ minutes", header), id
        assert f'hint("{id}")' in header
        assert ("(optional)" in header) == find(id).optional
        assert cells[number + 1].source == f'check("{id}")'


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_short(name):
    for cell in read(name).cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(r"(?s)<details>.*?</details>|```.*?```", "", cell.source)
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert sum(math.ceil(len(line) / LINE_WIDTH) for line in lines) <= MOST_LINES, cell.id


def test_no_statement_of_a_solution_is_in_a_notebook():
    cells = [cell for name in NAMES for cell in read(name).cells if cell.cell_type == "code"]
    given = set().union(*(statements(cell.source) for cell in cells))
    for each in exercises().values():
        own = statements(each.solution_file.read_text("utf-8"))
        # what is shorter is common to all programs
        assert {each for each in own - given if len(each) > SHORT}, each.id
        own -= statements(stubs.stub(each.id))
        assert {each for each in own & given if len(each) > SHORT} == set(), each.id


def statements(source):
    """The simple statements of a cell or a file, each in one spelling."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    kinds = ast.Assign | ast.AugAssign | ast.Return | ast.Raise | ast.Expr
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_the_unsolved_run_leaves_out_neither_uses_an_answer_nor_is_used(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    sources = {cell.id: cell.source for cell in cells}
    names = {id: uses_and_makes(source) for id, source in sources.items()}
    needs = {cell.id for cell in cells if cell.metadata.get("tags") or re.match(r"check\(|#\| exercise", cell.source)}
    out, own = set(LEFT_OUT[name]), names.keys() - needs
    assert out <= own
    used_by_kept = set().union(*(names[id][0] for id in names.keys() - out))
    made_with_answers = set().union(*(names[id][1] for id in needs)) - set().union(*(names[id][1] for id in own))
    for id in out:
        uses, makes = names[id]
        assert uses & made_with_answers == set() == makes & used_by_kept, id
        # a lesson's server has the learner's answers in it, unless it is told otherwise
        assert not re.search(r"\bserve\(\d(?!.*solution=True)", sources[id]), id


def uses_and_makes(source):
    """The names that a cell takes from others, and those that it leaves to them."""
    code = compile(TransformerManager().transform_cell(source), "", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    makes = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_NAME"}
    codes, uses = [code], set()
    for code in codes:
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        uses |= {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
    return uses - makes, makes


# run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(notebook) runs a copy in a fresh kernel, as the course installs it, and returns the copy.

    `earlier` is what earlier notebooks have left in `work/`: {file: source}; `folder` is where the notebook lies.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "prefix", str(folder))
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        lab.install_kernel()
        patch.undo()
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        for key in ("COURSE_MODEL", "COURSE_HUB"):
            patch.delenv(key, raising=False)

        def run(notebook, earlier=(), folder="."):
            notebook = copy.deepcopy(notebook)
            place = tmp_path_factory.mktemp("place")
            (place / folder).mkdir(parents=True, exist_ok=True)
            for file, source in dict(earlier).items():
                (place / "work" / file).parent.mkdir(parents=True, exist_ok=True)
                (place / "work" / file).write_text(source, "utf-8")
            client = NotebookClient(
                notebook,
                kernel_name=lab.KERNEL,
                timeout=CELL_LIMIT_S,
                allow_errors=True,
                resources={"metadata": {"path": str(place / folder)}},
            )
            client.execute(
                env={
                    **os.environ,
                    "COURSE_WORK": str(place / "work"),
                    "IPYTHONDIR": str(place / "ipython"),
                }
            )
            left = {each.name for each in (place / folder).iterdir()} - {"work", "ipython"}
            assert left == set(), "a lesson leaves files beside the notebook"
            return notebook

        yield run


def earlier(notebook, source):
    """{file: source(exercise)} of the exercises that come before the notebook's own."""
    own = [id for _, id in exercise_cells(notebook)]
    before = itertools.takewhile(lambda each: each.id not in own, exercises().values())
    return {each.file: source(each) for each in before}


@pytest.fixture(scope="module", params=NAMES)
def solved(request, run):
    notebook = read(request.param)
    for number, id in exercise_cells(notebook):
        solution = find(id).solution_file.read_text("utf-8")
        notebook.cells[number].source = f"{stubs.MARK}{id}\n{solution}"
    sources = earlier(notebook, lambda each: each.solution_file.read_text("utf-8"))
    return request.param, run(notebook, sources)


@pytest.fixture(scope="module", params=NAMES)
def unsolved(request, run):
    notebook = read(request.param)
    notebook.cells = [cell for cell in notebook.cells if cell.id not in LEFT_OUT.get(request.param, ())]
    return run(notebook, earlier(notebook, lambda each: stubs.stub(each.id)))


def errors(notebook):
    return {
        cell.id: output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "error"
    }


def shown(cell):
    """All that a cell has put out, as text and as HTML."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
        elif "data" in output:
            parts += [output.data.get("text/plain", ""), output.data.get("text/html", "")]
    return "".join(parts)


def verdicts(notebook):
    """The first line of the verdict under each check cell."""
    return {
        match[1]: shown(cell).splitlines()[0]
        for cell in notebook.cells
        if (match := re.fullmatch(r'check\("(.+)"\)', cell.source))
    }


def test_solved_every_cell_runs_and_every_verdict_says_passed(solved):
    name, notebook = solved
    assert {id: error.evalue for id, error in errors(notebook).items()} == {}
    said = verdicts(notebook)
    assert list(said) == [id for _, id in exercise_cells(notebook)]
    assert [line for line in said.values() if ": passed," not in line] == []


def test_solved_nothing_complains(solved):
    _, notebook = solved
    complaints = {
        cell.id: output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stderr"
    }
    assert complaints == {}


def test_solved_the_lessons_show_what_their_text_says(solved):
    name, notebook = solved
    cells = {cell.id: cell for cell in notebook.cells}
    said = {id: shown(cells[id]) for id in SHOWS[name]}
    assert {id: said[id] for id, text in SHOWS[name].items() if text not in said[id]} == {}


def test_solved_plots_are_plotted(solved):
    _, notebook = solved
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(PLOTS, cell.source, re.MULTILINE):
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.id


NEST_ASYNCIO = """
import asyncio, nest_asyncio, uvicorn

async def cell():
    nest_asyncio.apply()
    asyncio.run(asyncio.sleep(0))
    print("asyncio.run is done")
    uvicorn.run(lambda *_: None, port=0)

asyncio.run(cell())
"""


def test_nest_asyncio_helps_asyncio_run_and_not_uvicorn():
    done = subprocess.run([sys.executable, "-c", NEST_ASYNCIO], capture_output=True, text=True, timeout=60)
    assert done.stdout == "asyncio.run is done\n" and "\nRuntimeError: " in done.stderr, done.stderr


def test_the_lessons_on_chance_ask_where_the_model_is_not_sure():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    question, first_word = "Tell me anything", "The"
    for name in ("00_start_here", "stage1_one_endpoint"):
        source = "\n".join(cell.source for cell in read(name).cells)
        assert f'"{question}"' in source and f'+ "{first_word}"' in source
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    with torch.no_grad():
        scores = model(**tokenizer(prompt + first_word, return_tensors="pt")).logits[0, -1]
    # a new word, and not the rest of another one
    assert tokenizer.decode(scores.argmax()).startswith(" ")
    settings = model.generation_config
    # a likeliest token above top_p would leave nothing to draw
    assert (scores / settings.temperature).softmax(dim=0).max() < settings.top_p - 0.1


def test_unsolved_the_cells_that_need_an_exercise_fail_kindly_and_no_others(unsolved):
    needs = {
        cell.id: [tag.removeprefix("needs-") for tag in cell.metadata.tags if "needs-" in tag]
        for cell in unsolved.cells
        if "raises-exception" in cell.metadata.get("tags", [])
    }
    assert all(needs.values())
    found = errors(unsolved)
    assert list(found) == list(needs)
    for id, error in found.items():
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        assert "Traceback" not in text and text.count("\n") < 10, text
        assert any(f"{each} is not written yet" in text for each in needs[id]), text


def test_unsolved_no_verdict_says_passed(unsolved):
    said = verdicts(unsolved)
    assert list(said) == [id for _, id in exercise_cells(unsolved)]
    assert [line for line in said.values() if ": not written yet, 0 of" not in line] == []


def test_after_a_restart_an_exercise_cell_is_kept_and_checked_before_any_import(run):
    solution = find("0.1").solution_file.read_text("utf-8")
    cells = [f"{stubs.MARK}0.1\n{solution}", 'check("0.1")']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    ran = run(notebook)
    assert errors(ran) == {}
    assert ": passed," in verdicts(ran)["0.1"]
    assert ran.metadata.language_info == LANGUAGE_INFO


def test_a_chinese_notebook_works_from_its_folder(run):
    solution = find("0.1").solution_file.read_text("utf-8")
    cells = [f"{stubs.MARK}0.1\n{solution}", "print(check('0.1').passed)", "hint()"]
    notebook = read("zh/00_start_here")
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    ran = run(notebook, folder="notebooks/zh")
    assert errors(ran) == {}
    assert shown(ran.cells[1]).endswith("True\n") and shown(ran.cells[2])


def test_lab_renews_a_kernel_that_does_not_load_the_extension(tmp_path, monkeypatch):
    from ipykernel.kernelspec import install
    from jupyterlab.labapp import LabApp

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setattr(LabApp, "launch_instance", lambda arguments: None)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # lab.main sets what its kernels inherit
    install(kernel_name=lab.KERNEL, prefix=str(tmp_path))
    lab.main([])
    spec = tmp_path / "share" / "jupyter" / "kernels" / lab.KERNEL / "kernel.json"
    assert json.loads(spec.read_text("utf-8"))["argv"][-2:] == ["--ext", "course.notebook"]
