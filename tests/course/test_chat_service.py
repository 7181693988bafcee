"""The program at the end of stage 3's first notebook, run as the script that it is."""

import os
import re
import shutil
import signal
import subprocess
import sys

import httpx
import nbformat

from course.manifest import ROOT, find

MOST_LINES = 40
LIMIT_S = 120


def program():
    notebook = nbformat.read(ROOT / "notebooks" / "stage3a_four_actions.ipynb", as_version=4)
    source = next(cell.source for cell in notebook.cells if cell.id == "program")
    magic, _, text = source.partition("\n")
    assert magic.startswith("%%writefile ")
    return text + "\n"


def test_it_is_short():
    assert program().count("\n") <= MOST_LINES


def test_it_answers_until_ctrl_c(tmp_path):
    for id in ("3.1", "3.2", "3.3"):
        shutil.copy(find(id).solution_file, tmp_path)
    (tmp_path / "chat_service.py").write_text(program(), "utf-8")
    own = {"PORT": "0", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "chat_service.py"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "COURSE_MODEL"} | own,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        assert found, "".join(said)
        address = found[1] + "/v1/chat/completions"
        question = {"messages": [{"role": "user", "content": "你好"}]}
        answer = httpx.post(address, json=question, timeout=LIMIT_S)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert choice["message"]["role"] == "assistant" and choice["message"]["content"].startswith("你好！")
        assert httpx.post(address, json={"message": "你好"}, timeout=LIMIT_S).status_code == 422
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0 and "Traceback" not in rest, rest
    finally:
        process.kill()
        process.communicate()
