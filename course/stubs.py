"""Stubs, cut from the reference answers: what a learner starts from.

    python -m course.stubs            write the stubs into the notebooks' exercise cells
    python -m course.stubs --check    only say which cells are out of step
"""

import argparse
import ast
import re
import sys

from course.manifest import ROOT, exercise, exercises, shown

MARK = "#| exercise "
_MARKER = re.compile(r"# *\| *exercise:? +(\S+)\s*", re.IGNORECASE)
_LIKE_A_MARKER = re.compile(r"# *(\| *exercise\b|exercise:? *\d).*", re.IGNORECASE)


def stub(id: str) -> str:
    """The stub of exercise `id`: imports, signatures and docstrings, and bodies that raise
    NotImplementedError(id). Private helpers and a script's last lines are left out."""
    the_exercise = exercise(id)
    source = the_exercise.solution_file.read_text(encoding="utf-8")
    lines = source.splitlines()
    parts = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                parts.append("\n\n" + "\n".join(_cut(node, lines, id)))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            parts.append("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return f"{MARK}{id}\n" + "\n".join(parts).strip("\n") + "\n"


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


def without_marker(source: str) -> str:
    """The text without the marker of its exercise."""
    lines = source.splitlines()
    return "\n".join(line for line in lines if not _MARKER.fullmatch(line.strip())) + "\n"


def is_stub(id: str, source: str) -> bool:
    """Whether the text is the exercise's untouched stub."""
    return without_marker(source).strip() == without_marker(stub(id)).strip()


def _cut(node, lines, id):
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    document = node.body[0] if ast.get_docstring(node) is not None else None
    last = document.end_lineno if document else node.body[0].lineno - 1
    head = lines[first - 1 : last]
    indent = " " * (node.col_offset + 4)
    if not isinstance(node, ast.ClassDef):
        return [*head, f'{indent}raise NotImplementedError("{id}")']
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_") or child.name == "__init__":
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
