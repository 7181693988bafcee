"""Stubs, cut from the reference answers: what a learner starts from.

    python -m course.stubs            write the stubs into the notebooks' exercise cells
    python -m course.stubs --check    only say which cells are out of step

A stub imports what its own lines and docstrings name: the answer's other imports would give its design away.
What a learner need not write is given whole: a function, class, method or value, with the text below it
that documents a value, that has this line right above it in the solution:

    # given
"""

import argparse
import ast
import functools
import re
import sys

from course.manifest import ROOT, exercises, find, shown

MARK = "#| exercise "
GIVEN = "# given"
_MARKER = re.compile(r"# *\| *exercise:? +(\S+)\s*", re.IGNORECASE)
_LIKE_A_MARKER = re.compile(r"# *(\| *exercise\b|exercise:? *\d).*", re.IGNORECASE)


def stub(id: str) -> str:
    """The stub of exercise `id`: the imports that it needs itself, what is given, signatures and docstrings, and
    bodies that raise NotImplementedError(id). Private helpers and a script's last lines are left out."""
    the_exercise = find(id)
    return cut(the_exercise.solution_file.read_text(encoding="utf-8"), id)


@functools.cache
def cut(source: str, id: str) -> str:
    """The stub of the solution with this text."""
    lines = source.splitlines()
    parts, given = [], False
    for node in ast.parse(source).body:
        # the text below a given value is given with it
        given = is_given(node, lines) or (given and isinstance(node, ast.Expr))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            kind = "block" if given or not node.name.startswith("_") else None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            kind = "import"
        else:
            kind = "value" if given else None
        if kind:
            parts.append((kind, _cut(node, lines, id)))
    rest = "\n".join(line for kind, part in parts if kind != "import" for line in part)
    found, before = [f"{MARK}{id}"], None
    for kind, part in parts:
        if kind == "import":
            part = _needed(part, rest)
        if part:
            if before:
                found += [""] * (2 if "block" in (kind, before) else kind != before)
            found += part
            before = kind
    return "\n".join(found) + "\n"


def exercise_of(cell_source: str) -> str | None:
    """The id in the marker of an exercise cell; None for any other cell.

    Only blank lines and comments may stand above the marker.
    """
    for line in cell_source.splitlines():
        line = line.strip()
        if found := _MARKER.fullmatch(line):
            return found[1]
        if line and not line.startswith("#"):
            return None
    return None


def looks_like_an_exercise(cell_source: str) -> bool:
    """Whether a line of a cell looks as if it were meant to be the marker."""
    return any(_LIKE_A_MARKER.fullmatch(line.strip()) for line in cell_source.splitlines())


def without_marks(source: str) -> str:
    """The text without the marker of its exercise, and without the marks of what is given."""
    lines = (line for line in source.splitlines() if line.strip() != GIVEN)
    return "\n".join(line for line in lines if not _MARKER.fullmatch(line.strip())) + "\n"


def is_given(node: ast.AST, lines: list[str]) -> bool:
    """Whether the statement, of a solution with these lines, is in the stub as it is."""
    above = _first_line(node) - 2 if isinstance(node, ast.stmt) else -1
    return above >= 0 and lines[above].strip() == GIVEN


def _first_line(node):
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _needed(statement, code):
    """The lines of an import statement, with only those names that the code or its docstrings use."""
    (node,) = ast.parse("\n".join(statement)).body
    tree = ast.parse(code)
    used = {each.id for each in ast.walk(tree) if isinstance(each, ast.Name)}
    texts = [each.value for each in ast.walk(tree) if isinstance(each, ast.Constant) and isinstance(each.value, str)]

    def is_needed(name):
        # a name in small letters may be an English word
        named = rf"`{name}`|\b{name}[.(]\w" if name.islower() else rf"\b{name}\b"
        return name in used or any(re.search(named, text) for text in texts)

    names = [each for each in node.names if is_needed((each.asname or each.name).partition(".")[0])]
    if len(names) == len(node.names):
        return statement
    node.names = names
    return [ast.unparse(node)] if names else []


def _cut(node, lines, id):
    first = _first_line(node)
    if is_given(node, lines) or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [line for line in lines[first - 1 : node.end_lineno] if line.strip() != GIVEN]
    document = node.body[0] if ast.get_docstring(node) is not None else None
    last = document.end_lineno if document else node.body[0].lineno - 1
    head = lines[first - 1 : last]
    indent = " " * (node.col_offset + 4)
    if not isinstance(node, ast.ClassDef):
        return [*head, f'{indent}raise NotImplementedError("{id}")']
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name.endswith("__") or is_given(child, lines):
                head += ["", *_cut(child, lines, id)]
        elif child is not document:
            head += lines[child.lineno - 1 : child.end_lineno]
    return head


def main():
    import nbformat  # slow to import, and the course command has no need of it

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of step")
    only_check = parser.parse_args().check
    off, found = [], set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        changed = False
        for cell in notebook.cells:
            id = exercise_of(cell.source) if cell.cell_type == "code" else None
            if id is None:
                continue
            found.add(id)
            if cell.source.rstrip() != stub(id).rstrip():
                off.append(f"{shown(path)}: the cell of {id} is not the stub of its solution")
                cell.source = stub(id).rstrip()
                changed = True
        if changed and not only_check:
            nbformat.write(notebook, path)
    off += [f"no notebook has a cell for {id}" for id in exercises() if id not in found]
    print("\n".join(off) or "All exercise cells are in step with the solutions.")
    if off and only_check:
        sys.exit(1)


if __name__ == "__main__":
    main()
