"""What a lesson's server is made of: the functions of the exercises' files, and the model."""

import ast
import importlib.util
import sys
import traceback

from transformers.utils.logging import disable_progress_bar

from course.manifest import exercise, shown
from course.qwen.models import model_path


class NotReady(Exception):
    """A lesson cannot be served yet. The message names the exercise and says what to do."""


def load_parts(wanted, *, solution=False):
    """Load one function for each exercise.

    Args:
        wanted: {exercise id: name of the function}.
        solution: take the reference answers instead of the learner's.

    Returns:
        The functions, in the order of `wanted`.

    Raises:
        NotReady: with a line for each file that is missing, still a stub, or cannot be loaded.
    """
    found, problems = [], []
    for id, name in wanted.items():
        where = exercise(id).solution_file if solution else exercise(id).work_file
        try:
            found.append(_load(id, name, where))
        except NotReady as problem:
            problems.append(str(problem))
    if problems:
        first = problems[0].split()[0]
        stage = max(exercise(id).stage for id in wanted)
        raise NotReady(
            "\n".join(problems)
            + f"\nWhat you can do: work on it and check it (course check {first}),"
            + f"\nor serve the reference answers (solution=True, or course serve {stage} --solution)."
        )
    return found


def model_folder(name: str | None) -> str:
    """`model_path(name)`. A download shows its progress; reading the weights afterwards does not."""
    path = model_path(name)
    disable_progress_bar()
    return path


def _load(id, name, path):
    file = shown(path)
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except FileNotFoundError:
        raise NotReady(f"{id} is not written yet: there is no {file}") from None
    except SyntaxError as error:
        raise NotReady(f"{id} does not parse: {file}, line {error.lineno}: {error.msg}") from None
    if _is_stub(tree, name):
        raise NotReady(f"{id} is not written yet: `{name}` in {file} is still the stub")

    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # an exercise may import an earlier one
    module_name = f"{path.parent.parent.name}.{path.parent.name}.{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    # pydantic and dataclasses look a class's module up there
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = f"{file}, line {lines[-1]}" if lines else file
        reason = traceback.format_exception_only(error)[-1].strip()
        raise NotReady(f"{id} cannot be imported: {place}: {reason}") from None
    try:
        return getattr(module, name)
    except AttributeError:
        raise NotReady(f"{id} defines no `{name}`: {file}") from None


def _is_stub(tree, name):
    """Whether the function does nothing, docstring aside, but raise NotImplementedError."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            return not body or (
                isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0])
            )
    return False
