"""What an answer has to define, read from the reference answer without running it."""

import ast


def needs_of(solution_file):
    """{name: parameters} of its public functions, and {name: None} of its classes.

    A parameter is [name, "positional" or "keyword", has a default].
    """
    tree = ast.parse(solution_file.read_text(encoding="utf-8"))
    needs = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            needs[node.name] = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
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
