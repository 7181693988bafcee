"""What an answer has to define, read from the reference answer without running it."""

import ast

from course.stubs import is_given


def needs_of(solution_file):
    """{name: parameters} of its public functions, and {name: None} of its classes; what the stub
    gives is not among them.

    A parameter is [name, "positional" or "keyword", has a default].
    """
    source = solution_file.read_text(encoding="utf-8")
    lines = source.splitlines()
    needs = {}
    for node in ast.parse(source).body:
        if getattr(node, "name", "_").startswith("_") or is_given(node, lines):
            continue
        if isinstance(node, ast.ClassDef):
            needs[node.name] = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            needs[node.name] = _parameters(node.args)
    return needs


def _parameters(args):
    positional = args.posonlyargs + args.args
    without_default = len(positional) - len(args.defaults)
    found = [
        [arg.arg, "positional", index >= without_default] for index, arg in enumerate(positional)
    ]
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append([arg.arg, "keyword", default is not None])
    return found
