"""What an answer has to define, read from the reference answer without running it."""

import ast
import inspect

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
    found = [[arg.arg, "positional", index >= without_default] for index, arg in enumerate(positional)]
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append([arg.arg, "keyword", default is not None])
    return found


def signature_problem(function, parameters):
    """None if `function` can be called as the contract says, else how it cannot."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    positional = [None] * sum(kind == "positional" for _, kind, _ in parameters)
    by_name = {name: None for name, kind, _ in parameters if kind == "keyword"}
    needed = [None] * sum(kind == "positional" and not default for _, kind, default in parameters)
    needed_by_name = {name: None for name, kind, default in parameters if kind == "keyword" and not default}
    for args, kwargs in ((needed, needed_by_name), (positional, by_name)):
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            return f"{signature}: {error}"
    return None


def signature_text(parameters):
    """The parameters as Python writes them, each default as `...`."""
    shown_parameters, star = [], False
    for name, kind, has_default in parameters:
        if kind == "keyword" and not star:
            shown_parameters.append("*")
            star = True
        shown_parameters.append(name + ("=..." if has_default else ""))
    return f"({', '.join(shown_parameters)})"
