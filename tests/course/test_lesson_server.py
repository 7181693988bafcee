"""The lesson server, with real processes and sockets.

Most tests serve answers that need no model, so that a server starts in about a second.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import psutil
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from course.answers import NotReady, load_all
from course.lessons.server import ServeError, Server, serve
from course.lessons.stage import ByPath
from course.qwen import TINY

LIMIT_S = 60

ANSWERS = {
    "load_model": """
        def load_chat_model(name_or_path):
            print("asked for", name_or_path)
            return "the model", "the tokenizer"
        """,
    "chat": """
        import os, time

        def chat(model, tokenizer, text):
            if text == "take your time":
                print("taking it")
                time.sleep(600)
            return f"{text} to {model}, {os.environ['OMP_NUM_THREADS']} thread", []
        """,
    "chat_endpoint": """
        from contextlib import asynccontextmanager
        from fastapi import FastAPI
        import load_model  # an exercise may use an earlier one

        def create_app(load, chat):
            @asynccontextmanager
            async def lifespan(app):
                app.state.loaded = load()
                yield

            app = FastAPI(lifespan=lifespan)

            @app.post("/chat")
            def post_chat(body: dict):
                return {"result": chat(*app.state.loaded, body["text"])[0]}

            return app
        """,
}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A work folder with the ANSWERS; work(chat="...") writes another one."""
    folder = tmp_path / "work" / "stage1"
    folder.mkdir(parents=True)
    monkeypatch.setenv("COURSE_WORK", str(folder.parent))
    monkeypatch.delenv("COURSE_MODEL", raising=False)

    def write(**answers):
        for name, code in answers.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")

    write(**ANSWERS)
    return write


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    left = [
        child
        for child in psutil.Process().children(recursive=True)
        # a runner that has ended stays a zombie until the fork server is asked again
        if "course.lessons" in (child.as_dict(["cmdline"])["cmdline"] or [])
    ]
    for child in left:
        child.kill()
    assert not left


def ask(server, text):
    return httpx.post(f"{server.url}/chat", json={"text": text}, timeout=LIMIT_S).json()["result"]


def wait_for(holds):
    until = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def answers(url):
    with contextlib.suppress(httpx.TransportError):
        httpx.get(url, timeout=5)
        return True
    return False


def an_app(name, log):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        log.append(f"{name} starts")
        yield {name: "is there"}
        log.append(f"{name} ends")

    app = FastAPI(lifespan=lifespan)

    @app.get("/{path}")
    def get(request: Request):
        return f"{name} {request.state._state[name]}"

    return app


def test_each_path_has_its_app_and_all_are_started_and_shut_down():
    log = []
    others, one, two = (an_app(name, log) for name in ("others", "one", "two"))
    apps = ByPath({"/one": one, "/1": one}, ByPath({"/two": two}, others))
    with TestClient(apps) as client:
        assert log == ["others starts", "two starts", "one starts"]
        said = [client.get(path).json() for path in ("/one", "/1", "/two", "/three")]
    assert said == [f"{name} is there" for name in ("one", "one", "two", "others")]
    assert log[3:] == ["one ends", "two ends", "others ends"]


def test_the_reference_answers_ni_hao():
    with serve(1, solution=True) as server:
        assert ask(server, "你好").strip()
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        assert httpx.get(f"{server.url}/prompts").json() == {"safe": True}
        page = httpx.get(server.url)
        assert page.headers["content-type"].startswith("text/html")
        assert "<textarea" in page.text
        assert "Application startup complete" in server.logs()
        assert "Loading weights" not in server.logs()


def test_the_learners_own_parts_are_served(work):
    with serve("1.3") as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert ask(server, "你好") == "你好 to the model, 1 thread"
        assert httpx.get(f"{server.url}/prompts").json() == {"safe": False}
        assert f"asked for {TINY.absolute()}" in server.logs()
        wait_for(lambda: "POST /chat" in server.logs())
        assert server.url in repr(server) and f'href="{server.url}/"' in server._repr_html_()
    assert not answers(server.url)
    assert server.process.returncode is not None
    assert "POST /chat" in server.logs()
    assert "href" not in server._repr_html_()
    server.stop()


def test_an_unknown_exercise_is_said():
    with pytest.raises(ServeError, match="There is no exercise 1.7"):
        serve("1.7")


def test_an_interrupted_start_is_one_line_and_leaves_no_server(work, monkeypatch):
    started = []

    def interrupted(server):
        started.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "_wait", interrupted)
    with pytest.raises(ServeError, match="^Stopped before the server answered.$"):
        serve(1)
    assert [server.process.poll() is None for server in started] == [False]


def test_a_second_serve_replaces_the_first_at_the_same_address(work):
    first = serve(1)
    work(chat="def chat(model, tokenizer, text):\n    return 'new', []\n")
    with serve("1.2") as second:
        assert first.process.poll() is not None
        assert second.url == first.url
        assert ask(second, "x") == "new"


def test_a_server_that_has_ended_can_be_started_again(work):
    first = serve(1)
    first.process.kill()
    first.process.wait()
    with serve(1) as second:
        assert ask(second, "x").startswith("x to")


def test_stop_does_not_wait_for_an_answer_in_progress(work):
    server = serve(1)
    threading.Thread(target=ask_and_forget, args=[server], daemon=True).start()
    wait_for(lambda: "taking it" in server.logs())
    server.stop()
    assert server.process.returncode is not None


def ask_and_forget(server):
    with contextlib.suppress(httpx.TransportError):
        httpx.post(f"{server.url}/chat", json={"text": "take your time"}, timeout=LIMIT_S)


def test_the_model_can_be_chosen(work, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.symlink_to(TINY.absolute())
    cores = psutil.cpu_count(logical=False) or 1
    with serve(1, model=str(folder)) as server:
        assert f"asked for {folder}" in server.logs()
        assert ask(server, "x") == f"x to the model, {cores} thread"
    monkeypatch.setenv("COURSE_MODEL", str(folder))
    with serve(1) as server:
        assert f"asked for {folder}" in server.logs()


def test_a_model_that_is_not_there_is_named(work):
    with pytest.raises(ServeError, match=r"no folder \./nowhere"):
        serve(1, model="./nowhere")


def test_files_in_the_current_folder_are_not_taken_for_modules(work, tmp_path, monkeypatch):
    (tmp_path / "fastapi.py").write_text("raise SystemExit('the wrong fastapi')")
    monkeypatch.chdir(tmp_path)
    with serve(1) as server:
        assert ask(server, "x").startswith("x to")


def test_a_taken_port_is_named(work):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServeError, match=f"Port {port} is in use.*another port"):
            serve(1, port=port)


def test_a_port_or_host_that_does_not_exist_is_named(work):
    with pytest.raises(ServeError, match="70000 is not a valid port"):
        serve(1, port=70_000)
    with pytest.raises(ServeError, match=r"nowhere\.invalid"):
        serve(1, host="nowhere.invalid")


def test_a_stage_without_a_server_is_refused():
    for stage in ("0.1", 7, "one", ""):
        with pytest.raises(ServeError, match="Stages with a server: 1"):
            serve(stage)


def test_an_unsolved_exercise_is_named(work):
    work(chat='def chat(*args):\n    """Says."""\n    raise NotImplementedError("1.2")\n')
    with pytest.raises(ServeError) as error:
        serve(1)
    assert "1.2 is not written yet" in str(error.value)
    assert "--solution" in str(error.value)
    assert "Traceback" not in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


def test_what_is_raised_at_start_up_is_shown(work):
    work(load_model="def load_chat_model(name):\n    raise OSError('the disk is gone')\n")
    with pytest.raises(ServeError, match="the disk is gone"):
        serve(1)


def test_an_app_that_is_not_returned_is_named(work):
    work(chat_endpoint="def create_app(load, chat):\n    pass\n")
    with pytest.raises(ServeError, match="1.3 .*`create_app` returned None"):
        serve(1)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def chat(:\n", r"1\.2 does not parse: .*chat\.py, line 1"),
        ("x = 1\ny = z\n", r"1\.2 cannot be imported: .*chat\.py, line 2: NameError: name 'z'"),
        ("import sys\nsys.exit(3)\n", r"1\.2 cannot be imported: .*chat\.py, line 2: SystemExit"),
        ("def caht(): pass\n", r"1\.2 does not define `chat`"),
        ("def chat(a):\n    raise NotImplementedError\n", r"1\.2 is not written yet: .*stub"),
        ("def chat(a):\n    'Only words.'\n", r"1\.2 is not written yet: .*stub"),
    ],
)
def test_a_part_that_cannot_be_loaded_says_why(work, code, says):
    work(chat=code)
    with pytest.raises(NotReady, match=says):
        load_all({"1.2": "chat"})


def test_all_missing_parts_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))
    with pytest.raises(NotReady) as error:
        load_all({"1.1": "load_chat_model", "1.2": "chat"})
    assert "1.1 is not written yet" in str(error.value)
    assert "1.2 is not written yet" in str(error.value)


def test_a_part_that_raises_only_here_and_there_is_no_stub(work):
    work(chat="def chat(x):\n    if x:\n        raise NotImplementedError\n    return 5\n")
    (chat,) = load_all({"1.2": "chat"})
    assert chat(0) == 5


@contextlib.contextmanager
def python(code):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


NOTEBOOK = """
    import time
    from course.lessons.server import serve
    server = serve(1)
    print(server.url, server.process.pid, flush=True)
    time.sleep(600)
    """


@pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: Windows has no process groups and no SIGKILL")
def test_the_server_ends_with_its_parent_but_not_with_a_cell(work):
    with python(NOTEBOOK) as notebook:
        assert notebook.stdout.readline() == "Starting the server for stage 1 ...\n"
        url, pid = notebook.stdout.readline().split()
        # Jupyter's stop button interrupts the kernel's whole process group
        assert os.getpgid(int(pid)) != os.getpgid(notebook.pid)
        assert answers(url)
        notebook.kill()
        wait_for(lambda: not answers(url))
        wait_for(lambda: has_ended(int(pid)))


TERMINAL = "import sys; from course.lessons.server import run; sys.exit(run(1, {arguments}))"


@pytest.mark.skipif(os.name != "posix", reason="NOT TESTED: Windows sends Ctrl-C in another way")
def test_in_a_terminal_it_says_where_it_is_and_ctrl_c_ends_it(work):
    with python(TERMINAL.format(arguments="port=0, host='0.0.0.0'")) as terminal:
        assert "0.0.0.0" in terminal.stdout.readline()
        line = next(line for line in terminal.stdout if "http://" in line)
        url = next(word for word in line.split() if word.startswith("http://"))
        assert "Ctrl-C" in line and answers(url)
        terminal.send_signal(signal.SIGINT)
        assert terminal.wait(LIMIT_S) == 0
        assert not answers(url)


def test_in_a_terminal_a_taken_port_is_one_line_and_exit_code_1(work):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with python(TERMINAL.format(arguments=f"port={port}")) as terminal:
            out, error = terminal.communicate(timeout=LIMIT_S)
    assert terminal.returncode == 1
    assert out == "" and f"Port {port} is in use" in error and len(error.splitlines()) == 1
