"""The one door to answers: the exercises' files as modules, the learner's or the reference's.

Not covered: an exercise that is run as a script. Python itself then finds those beside it, and no others.
"""

import ast
import functools
import importlib.util
import sys
import traceback
from importlib.machinery import SourceFileLoader
from pathlib import Path

from course import stubs
from course.manifest import exercises, find, shown
from course.words import words


class NotReady(Exception):
    """An answer cannot be used yet. The message names the exercise and says what to do."""


def importable(solution: bool | None = False) -> None:
    """From now on `import chat_stream` finds exercise 2.2, wherever it stands: the learner's file, or
    the reference's; at None, neither. Of the learner's, one that is optional and skipped is the reference's.

    Another package or file of that name is not found, nor is any other file of the learner's.
    """
    _finder.turn_to(solution)


def load(id: str, name: str, solution: bool = False):
    """A function or class of the learner's answer to exercise `id`, or of the reference's.

    What the answer imports of other exercises is from the same side, whatever is `importable`.

    Raises:
        NotReady: the file is missing, `name` is still the stub or not there, or it cannot be imported.
    """
    file = _file(find(id), solution)
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except FileNotFoundError:
        raise NotReady(words("{id} is not written yet: there is no {file}", id=id, file=shown(file))) from None
    except SyntaxError as error:
        where = {"file": shown(file), "line": error.lineno, "why": error.msg}
        raise NotReady(words("{id} does not parse: {file}, line {line}: {why}", id=id, **where)) from None
    if any(getattr(node, "name", "") == name and _is_unwritten(node, id) for node in tree.body):
        said = words(
            "{id} is not written yet: `{name}` in {file} is still the stub", id=id, name=name, file=shown(file)
        )
        raise NotReady(said)
    before = _finder.solution
    _finder.turn_to(solution)
    try:
        found = module(file)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        place = words("{file}, line {line}", file=shown(file), line=lines[-1]) if lines else shown(file)
        reason = traceback.format_exception_only(error)[-1].strip()
        said = words("{id} cannot be imported: {place}: {reason}", id=id, place=place, reason=reason)
        raise NotReady(said) from None
    finally:
        _finder.turn_to(before)
    try:
        return getattr(found, name)
    except AttributeError:
        raise NotReady(words("{id} does not define `{name}`: {file}", id=id, name=name, file=shown(file))) from None


def load_all(wanted: dict[str, str | tuple[str, ...]], *, solution: bool = False) -> list:
    """`load` for each {exercise id: name}, in that order; for a tuple of names, a list of what they name.

    Raises:
        NotReady: with a line for each that is not, and what can be done.
    """
    found, problems = [], {}
    for id, names in wanted.items():
        try:
            if isinstance(names, str):
                found.append(load(id, names, solution))
            else:
                found.append([load(id, name, solution) for name in names])
        except NotReady as problem:
            problems[id] = str(problem)
    if problems:
        stage = max(find(id).stage for id in wanted)
        raise NotReady(
            "\n".join(problems.values())
            + "\n"
            + words("What you can do: finish it and check it (course check {id}),", id=next(iter(problems)))
            + "\n"
            + words("or serve the reference answers (solution=True, or course serve {stage} --solution).", stage=stage)
        )
    return found


def module(path: Path, name: str | None = None):
    """The file as the module `name`, by default its stem; run only once, and found by later imports."""
    path = Path(path).absolute()
    name = name or path.stem
    found = sys.modules.get(name)
    if found is not None and getattr(found, "__file__", None) == str(path):
        return found
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path)))
    found = importlib.util.module_from_spec(spec)
    # pickle, dataclasses and pydantic look a class's module up there
    sys.modules[name] = found
    try:
        spec.loader.exec_module(found)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return found


def forget(id: str) -> None:
    """Makes the next import of the learner's answer read its file again, and so the next import of
    all that has taken something from it."""
    name = Path(find(id).file).stem
    gone = sys.modules.pop(name, None)
    for other, its in _by_module().items():
        values = vars(sys.modules[other]).values() if other in sys.modules else ()
        if any(value is gone or getattr(value, "__module__", None) == name for value in values):
            forget(its.id)


def is_stub(id: str, source: str) -> bool:
    """Whether the text is the exercise's untouched stub."""
    return stubs.without_marks(source).strip() == stubs.without_marks(stubs.stub(id)).strip()


def is_skipped(id: str) -> bool:
    """Whether the exercise is optional, and the learner has no more of it than the stub."""
    if not find(id).optional:
        return False
    try:
        return is_stub(id, find(id).work_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def raised_by_stub(error: BaseException) -> str | None:
    """The exercise whose stub raised the error; None if none did."""
    id = str(error.args[0]) if error.args else ""
    return id if isinstance(error, NotImplementedError) and id in exercises() else None


class _Loader(SourceFileLoader):
    """Reads the source alone: bytecode counts as good for a file that is written again within a second."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)


class _Finder:
    """Finds the exercises' modules of one side, and knows nothing else."""

    solution = None
    """Which side; at None, neither."""

    def __init__(self):
        self._aside = {None: {}, False: {}, True: {}}

    def turn_to(self, solution):
        """Lets imports find that side's modules; those of the other, which may be in use, stay apart."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        loaded = {name: sys.modules.pop(name) for name in _by_module() if name in sys.modules}
        self._aside[self.solution] = loaded
        self.solution = solution
        for name, kept in self._aside[solution].items():
            # the learner's folder may be another one by now
            if solution is None or kept.__file__ == str(_imported(_by_module()[name], solution)):
                sys.modules[name] = kept

    def find_spec(self, name, path=None, target=None):
        the_exercise = None if self.solution is None else _by_module().get(name)
        if the_exercise is None:
            return None
        file = _imported(the_exercise, self.solution)
        if not file.is_file():
            message = words("{id} is not written yet: there is no {file}", id=the_exercise.id, file=shown(file))
            raise ModuleNotFoundError(message, name=name)
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))


_finder = _Finder()


@functools.cache
def _by_module():
    return {Path(each.file).stem: each for each in exercises().values()}


def _imported(the_exercise, solution):
    return _file(the_exercise, solution or is_skipped(the_exercise.id))


def _file(the_exercise, solution):
    return the_exercise.solution_file if solution else the_exercise.work_file


def _is_unwritten(node, id):
    """Whether a function does nothing, docstring aside, but raise NotImplementedError; or a class has
    a method that does nothing but raise it with the exercise's id, as the stub's do."""
    if isinstance(node, ast.ClassDef):
        return any(_first_step(method) == f"raise NotImplementedError('{id}')" for method in node.body)
    first = _first_step(node)
    return first == "" or first.startswith("raise NotImplementedError")


def _first_step(node):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return "not a function"
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return ast.unparse(body[0]) if body else ""
