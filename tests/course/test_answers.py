"""The one door to answers: which file an import finds, in this process, in a room, in a notebook."""

import ast
import importlib.metadata
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from course import answers, stubs
from course.answers import NotReady
from course.grading import check
from course.grading.needs import needs_of
from course.manifest import exercises, work_folder

MODULES = [Path(each.file).stem for each in exercises().values()]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Writes files into a work folder; whatever is importable then is not any longer afterwards."""
    monkeypatch.setenv("COURSE_WORK", str(tmp_path))

    def work(**files):
        for file, source in files.items():
            file = tmp_path / f"{file.replace('__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(source, encoding="utf-8")

    yield work
    answers.importable(None)


def test_each_module_has_a_name_that_nothing_else_has():
    assert len(set(MODULES)) == len(MODULES), "give each exercise's file another name"
    assert not set(MODULES) & sys.stdlib_module_names, "Python has a module of that name: take another"
    # a learner's `import client` finds the exercise all the same, but other packages' would, too
    installed = importlib.metadata.packages_distributions()
    taken = {name: installed[name] for name in MODULES if name in installed}
    assert not taken, "a package has a module of that name: call the exercise's file something else"


def test_an_exercise_of_another_stage_is_found(work):
    work(stage1__safe_prompt="mine = 1\n", stage2__rate_limit="from safe_prompt import mine\n")
    assert answers.load("2.3", "mine") == 1
    answers.importable()
    import rate_limit
    import safe_prompt

    assert rate_limit.mine == safe_prompt.mine == 1


@pytest.mark.parametrize("begun", [False, True])
def test_an_optional_exercise_that_was_skipped_is_the_references(work, begun):
    taken = "from safe_prompt import encode_chat\nimport safe_prompt\n"
    work(stage2__rate_limit=taken, **({"stage1__safe_prompt": stubs.stub("1.5")} if begun else {}))
    answers.importable()
    import rate_limit

    reference = str(exercises()["1.5"].solution_file)
    assert rate_limit.safe_prompt.__file__ == reference
    assert answers.load("2.3", "safe_prompt").__file__ == reference
    assert answers.is_skipped("1.5")
    with pytest.raises(NotReady, match="1.5 is not written yet"):
        answers.load("1.5", "encode_chat")
    # what the learner writes then takes its place
    work(stage1__safe_prompt="encode_chat = 1\n")
    answers.forget("1.5")
    assert answers.load("2.3", "encode_chat") == 1


def test_an_exercise_that_is_not_optional_is_never_the_references(work):
    work(stage2__rate_limit="import chat_stream\n")
    with pytest.raises(NotReady, match="2.2 is not written yet"):
        answers.load("2.3", "chat_stream")


def test_what_is_loaded_can_be_pickled():
    answers.importable(solution=True)
    try:
        kind = answers.load("1.4", "ChatError", solution=True)
        assert type(pickle.loads(pickle.dumps(kind("no")))) is kind
    finally:
        answers.importable(None)


def test_each_side_sees_only_its_own(work):
    work(stage2__chat_stream="def create_app(handler):\n    return 'mine'\n")
    answers.importable()
    theirs = answers.load("2.3", "create_app", solution=True)
    assert theirs.__globals__["create_stream_app"](None) != "mine"
    import chat_stream

    assert chat_stream.create_app(None) == "mine"
    answers.importable(solution=True)
    assert importlib.import_module("chat_stream") is not chat_stream
    answers.importable()
    assert importlib.import_module("chat_stream") is chat_stream


def test_one_file_is_run_once(work):
    work(stage1__client="kept = []\n", stage2__rate_limit="from client import kept\n")
    assert answers.load("2.3", "kept") is answers.load("1.4", "kept")


def test_neither_a_package_wins_over_an_exercise_nor_a_file_of_the_learner_s_over_python(work, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    work(
        elsewhere__client="whose = 'a package'\n",
        stage1__client="import random\nwhose = 'mine'\n",
        stage1__random="raise RuntimeError('not the real one')\n",
    )
    program = "from course import answers; answers.importable(); import client; print(client.whose)"
    path = sys.path.copy()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(elsewhere)!r}); {program}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "mine\n", done.stderr
    answers.load("1.4", "whose")
    assert sys.path == path


def test_what_is_not_written_yet_is_said_where_it_is_imported(work):
    answers.importable()
    with pytest.raises(ImportError, match=r"1\.4 is not written yet: there is no .*client\.py"):
        import client  # noqa: F401
    work(stage2__rate_limit="import client\ndef create_app(handler):\n    pass\n")
    with pytest.raises(NotReady, match=r"2\.3 cannot be imported: .* line 1: .*1\.4 is not written yet"):
        answers.load("2.3", "create_app")


def test_a_forgotten_answer_is_read_again_and_so_is_one_that_uses_it(work):
    answers.importable()
    work(stage1__client="def ask():\n    return 1\n", stage2__rate_limit="from client import ask\n")
    assert importlib.import_module("rate_limit").ask() == 1
    # within the second, and of the same size: bytecode would count as good
    work(stage1__client="def ask():\n    return 2\n")
    answers.forget("1.4")
    assert importlib.import_module("rate_limit").ask() == 2


@pytest.mark.parametrize("id", exercises())
def test_a_stub_is_not_written_yet(work, id):
    work(**{exercises()[id].file.removesuffix(".py").replace("/", "__"): stubs.stub(id)})
    assert answers.is_stub(id, exercises()[id].work_file.read_text(encoding="utf-8"))
    assert not answers.is_stub(id, exercises()[id].solution_file.read_text(encoding="utf-8"))
    for node in ast.parse(stubs.stub(id)).body:
        name = getattr(node, "name", None)
        if name is None or "NotImplementedError" not in ast.unparse(node):
            continue
        with pytest.raises(NotReady, match=rf"{id} is not written yet: `{name}` in .* is still the stub"):
            answers.load(id, name)


@pytest.mark.parametrize("body", ["pass", "raise NotImplementedError", "'Only words.'"])
def test_a_class_whose_method_does_nothing_is_not_a_stub(work, body):
    work(stage2__model_handler=f"class ModelHandler:\n    def generate(self):\n        {body}\n")
    assert answers.load("2.1", "ModelHandler")


def test_in_the_room_other_exercises_are_the_reference_s_whatever_lies_beside_the_answer(work):
    # the file has the name of the exercise that it imports, which is not there but in the solutions
    source = exercises()["2.3"].solution_file.read_text(encoding="utf-8")
    source += "\nfrom safe_prompt import encode_chat\nimport random\n"
    source += "import pickle, dataclasses\n@dataclasses.dataclass\nclass Kept:\n    at: 'int' = 1\n"
    source += "assert pickle.loads(pickle.dumps(Kept(2))) == Kept(2)\n"
    work(
        stage2__chat_stream=source,
        stage2__safe_prompt="raise RuntimeError('the learner's')\n",
        stage2__random="raise RuntimeError('not the real one')\n",
    )
    verdict = check("2.3", work_folder() / "stage2" / "chat_stream.py")
    assert verdict.passed, "\n".join(verdict.full_lines())


SOLUTION = '''"""Not in the stub."""

import math

# given
FORMAT = "%s"
"""What a line looks like."""
# not given
SECRET = 1


# given
@staticmethod
def helper(a):
    # a reason
    return a + 1


class Model:
    """Words."""

    # given
    def told(self):
        return 1

    def tell(self):
        """Tells."""
        return 2

    def _own(self):
        return 3


# given
def _shown():
    return 4


def _hidden():
    return 5
'''

STUB = '''#| exercise 1.4
FORMAT = "%s"
"""What a line looks like."""


@staticmethod
def helper(a):
    # a reason
    return a + 1


class Model:
    """Words."""

    def told(self):
        return 1

    def tell(self):
        """Tells."""
        raise NotImplementedError("1.4")


def _shown():
    return 4
'''


def test_what_is_given_is_in_the_stub_and_not_asked_of_an_answer(tmp_path, monkeypatch):
    file = tmp_path / "solution.py"
    file.write_text(SOLUTION, encoding="utf-8")
    monkeypatch.setattr(type(exercises()["1.4"]), "solution_file", file)
    assert stubs.stub("1.4") == STUB
    assert needs_of(file) == {"Model": None}
