"""The Chinese edition of the notebooks: its prose is its own, its code is the English edition's.

    python -m course.chinese                   take over the code and new cells of the English notebooks
    python -m course.chinese --check           only say what is out of step
    python -m course.chinese --done NAME ...   the prose of these notebooks is up to date

A prose cell has the id of its English twin, and in its metadata, as `translates`, the hash of the English text that
it was translated from. When the English text changes, the cell is out of step until it has been read again. The
cell above an exercise says in Chinese what the stub's docstrings promise, so the stub belongs to its English text.
"""

import argparse
import copy
import hashlib
import itertools
import sys
from pathlib import Path

import nbformat

from course.manifest import ROOT, shown
from course.stubs import exercise_of

ENGLISH = ROOT / "notebooks"
CHINESE = ENGLISH / "zh"


def hashes(english: nbformat.NotebookNode) -> dict[str, str]:
    """What each prose cell is translated from, by the cell's id."""
    found = {}
    for cell, below in itertools.pairwise([*english.cells, nbformat.v4.new_markdown_cell()]):
        if cell.cell_type == "markdown":
            stub = below.source if below.cell_type == "code" and exercise_of(below.source) else ""
            found[cell.id] = hashlib.sha256((cell.source + stub).encode()).hexdigest()[:12]
    return found


def edition(english: nbformat.NotebookNode, chinese: nbformat.NotebookNode | None) -> nbformat.NotebookNode:
    """The English notebook with the prose that the Chinese one has for it; where it has none, in English."""
    known = {cell.id: cell for cell in chinese.cells if cell.cell_type == "markdown"} if chinese else {}
    made = copy.deepcopy(english)
    for cell in made.cells:
        if cell.cell_type == "markdown" and cell.id in known:
            cell.source = known[cell.id].source
            cell.metadata = known[cell.id].metadata
    return made


def out_of_step(english: nbformat.NotebookNode, chinese: nbformat.NotebookNode) -> list[str]:
    """What is to be done to the Chinese notebook, a line each."""
    found = [] if edition(english, chinese) == chinese else ["other cells than the English one: make chinese"]
    now = hashes(english)
    for cell in chinese.cells:
        if cell.cell_type == "markdown" and cell.id in now and cell.metadata.get("translates") != now[cell.id]:
            found.append(f"the cell {cell.id} was translated from another English text, or not yet")
    return found


def _read(path):
    return nbformat.read(path, as_version=4) if path.exists() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if out of step")
    parser.add_argument("--done", nargs="+", default=[], metavar="NAME", help="notebooks whose prose is up to date")
    asked = parser.parse_args()
    if not asked.check:
        CHINESE.mkdir(exist_ok=True)
        for path in sorted(ENGLISH.glob("*.ipynb")):
            english = _read(path)
            made = edition(english, _read(CHINESE / path.name))
            if path.stem in {Path(name).stem for name in asked.done}:
                now = hashes(english)
                for cell in made.cells:
                    if cell.cell_type == "markdown":
                        cell.metadata["translates"] = now[cell.id]
            nbformat.write(made, CHINESE / path.name)
    off = []
    for path in sorted(ENGLISH.glob("*.ipynb")):
        chinese = _read(CHINESE / path.name)
        lines = ["is missing: make chinese"] if chinese is None else out_of_step(_read(path), chinese)
        off += [f"{shown(CHINESE / path.name)}: {line}" for line in lines]
    print("\n".join(off) or "The Chinese notebooks are in step with the English ones.")
    if off and asked.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
