"""Collects the English texts of the code: what the checks of exercises can say, and what the course says itself.

A finding of a test is a finished sentence. It may have come a long way through parameters, names and tables before
it reaches a Mistake, so it is followed back from there to its literals, by names alone. What is missed is shown in
English; the walls notice it. Texts of the rest of `course/` stand in a call of `words`.
"""

import ast
import re
from collections import defaultdict

from course.audit import CHECKS, new_result
from course.manifest import ROOT, exercises
from course.words import HOLE, NOTHING
from course.words.findings import Findings, template
from course.words.phrases import FACT_PHRASES, PHRASES

FACTS = {"sent", "expected", "got"}
CODE = re.compile(r"`[^`]*`|\([^)]*=[^)]*\)")
WORDS = re.compile(r"(?<![\w.\"'`])[a-z]+,? [a-z]+\b")


def collected() -> dict[str, list[str]]:
    """{English text: the files that it is in}, file by file."""
    found = defaultdict(dict)
    for id, each in exercises().items():
        texts = [each.title, each.mattered, *each.hints, *(test.title for test in each.tests)]
        texts += [test.elsewhere for test in each.tests if test.elsewhere and test.elsewhere != "all"]
        for text in texts:
            found[text][f"course/exercises.toml#{id}"] = None
    course = sorted(path for path in (ROOT / "course").rglob("*.py"))
    for path in course:
        for text in _own_words(ast.parse(path.read_text("utf-8"))):
            found[text][path.relative_to(ROOT).as_posix()] = None
    for id in CHECKS:
        for text in (new_result(id).title, new_result(id).why):
            found[text]["course/audit/checks"] = None
    tests = sorted((ROOT / "course" / "grading").rglob("*.py")) + [ROOT / "course" / "manifest.py"]
    tests += sorted((ROOT / "tests").glob("stage*/*.py"))
    for text, path in Findings(tests).all():
        found[text][path.relative_to(ROOT).as_posix()] = None
    for file, phrases in PHRASES.items():
        for text in phrases:
            found[text][file] = None
    # the texts of a file stand together
    return {text: list(files) for text, files in sorted(found.items(), key=lambda item: next(iter(item[1])))}


def collected_facts() -> dict[str, list[str]]:
    """{English text: the files that it is in}: what tests say that they sent, expected and got, in words."""
    found = defaultdict(dict)
    paths = sorted((ROOT / "course" / "grading").rglob("*.py")) + sorted((ROOT / "tests").glob("stage*/*.py"))
    for path in paths:
        for text in _facts(ast.parse(path.read_text("utf-8"))):
            found[text][path.relative_to(ROOT).as_posix()] = None
    for file, phrases in FACT_PHRASES.items():
        for text in phrases:
            found[text][file] = None
    return {text: list(files) for text, files in found.items()}


def _own_words(tree):
    """What stands in a call of `words` or `marked`, and what typer shows: docstrings of commands, and `help`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if getattr(node.func, "id", None) in ("words", "marked"):
                yield from _texts(node.args[0])
            yield from (key.value.value for key in node.keywords if key.arg == "help" and _is_typer(node.func))
        elif isinstance(node, ast.FunctionDef):
            if any(".command(" in ast.unparse(each) for each in node.decorator_list):
                yield ast.get_docstring(node)


def _facts(tree):
    """The literals among a test's facts that are words, not data."""
    for node in ast.walk(tree):
        pairs = []
        if isinstance(node, ast.Call):
            pairs = [(key.arg, key.value) for key in node.keywords]
            if len(node.args) == 2:  # facts.setdefault("got", ...)
                pairs.append((getattr(node.args[0], "value", None), node.args[1]))
        elif isinstance(node, ast.Assign):
            pairs = [(getattr(target, "id", None), node.value) for target in node.targets]
        elif isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
        for text in (text for name, value in pairs if name in FACTS for text in _texts(value)):
            if text in NOTHING or WORDS.search(HOLE.sub("#", CODE.sub("#", text))):
                yield text


def _is_typer(function):
    return ast.unparse(function).startswith("typer.")


def _texts(node):
    """The texts that a literal can be, a hole for each expression in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    if isinstance(node, ast.JoinedStr):
        return [template([part.value for part in node.values])]
    return []
