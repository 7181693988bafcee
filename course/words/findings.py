"""What the tests of exercises can say: their findings are followed back from a Mistake to the literals that they are
made of, by names alone, through parameters, assignments and tables.
"""

import ast
import itertools
import re
from collections import defaultdict

from course.words import has_words

MOST = 3
"""A hole for which there are no more texts than these is written out, if they are known."""
MOST_VARIANTS = 60
"""Of one expression."""
SINKS = [
    ("Mistake", "mistake"),
    ("NotWritten", "mistake"),
    ("NotLoaded", "mistake"),
    ("Hung", "mistake"),
    ("Ended", "mistake"),
    ("Raised", "call"),
    ("not_tested", "lack"),
    ("_result", "mistake"),
]
"""(function, parameter) that a finding goes into. Functions that hand theirs on to one of these are found."""
NAMES = {"mistake", "problem"}
"""What is assigned to such a name, or stands under such a key, is a finding too."""


class Findings:
    """What the modules' checks can say."""

    def __init__(self, paths):
        self.functions = defaultdict(list)
        self.globals = defaultdict(list)
        self.attributes = defaultdict(list)
        self.known, self.bound, self.imports, self.seen = {}, {}, {}, set()
        self.shared = [path for path in paths if "grading" in path.parts]
        self.calls = defaultdict(list)
        self.roots = []
        for path in paths:
            self.imports[path] = set()
            todo = [ast.parse(path.read_text("utf-8"))]
            while todo:
                node = todo.pop()
                children = list(ast.iter_child_nodes(node))
                for child in children:
                    child.parent, child.path = node, path
                self._note(node, path)
                todo += reversed(children)

    def _note(self, node, path):
        match node:
            case ast.ImportFrom(module=str(module)):
                self.imports[path].add(module.rpartition(".")[2])
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                self.functions[name].append(node)
            case ast.Call() if name := _called(node):
                self.calls[name].append(node)
            case ast.Dict():
                pairs = zip(node.keys, node.values)
                self.roots += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value in NAMES]
            case ast.keyword() if node.arg in NAMES:
                self.roots.append(node.value)
            case ast.Assign() | ast.AnnAssign() if node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Attribute):
                        self.attributes[target.attr].append(node.value)
                        self.roots += [node.value] if target.attr in NAMES else []
                    for name, value in _pairs(target, node.value):
                        if name in NAMES:
                            self.roots.append(value)
                        if _function_of(node) is None:
                            self.globals[name].append(value)
                            self.attributes[name].append(value)

    def all(self):
        """Yields (text, path), each text in the form of a template."""
        done, todo = set(), [*SINKS]
        self.handed_on, ends = todo, self.roots
        while ends or todo:
            for value in ends:
                yield from self._said(value)
            ends = []
            while todo:
                sink = todo.pop()
                if sink not in done:
                    done.add(sink)
                    ends += self._handed(*sink)

    def _said(self, value):
        for parts in self.variants(value):
            yield from self._whole(parts, value.path)

    def _whole(self, parts, path, held=False):
        text = template(parts).strip() if held else template(parts)
        if has_words(text) and " " in text.strip():
            yield text, path
        for part in parts:
            if isinstance(part, ast.Name | ast.IfExp | ast.Subscript) or self._is_property(part):
                # what a hole may hold is translated by itself
                if part not in self.seen:
                    self.seen.add(part)
                    for each in self.variants(part, quiet=True):
                        yield from self._whole(each, path, held=True)

    def _handed(self, function, parameter):
        """The values that calls hand to that parameter, and its default."""
        found = []
        for node in self.functions.get(function, [None]):
            names = _parameters(node) if node else [parameter]
            if parameter not in names:
                continue
            found += _default(node, parameter) if node else []
            position = names.index(parameter)
            for call in self.calls[function]:
                if node and not self._means(call, node):
                    continue
                plain = [arg for arg in call.args[: position + 1] if not isinstance(arg, ast.Starred)]
                found += plain[position : position + 1]
                found += [key.value for key in call.keywords if key.arg == parameter]
        return found

    def _means(self, call, function):
        """Whether a call of that name can be one of that function: of its own file, or one that is imported."""
        return function.path in (call.path, *self.shared) or function.path.stem in self.imports[call.path]

    def variants(self, node, quiet=False):
        """What the expression may be: lists of parts, texts and expressions that are not known. `quiet`: names of
        parameters are looked up, but not followed as findings."""
        key = id(node), quiet
        if key not in self.known:
            self.known[key] = []  # a name that is made from itself adds nothing
            self.known[key] = self._variants(node, quiet)[:MOST_VARIANTS]
        return self.known[key]

    def _variants(self, node, quiet):
        def of(*nodes):
            return [each for node in nodes for each in self.variants(node, quiet)]

        match node:
            case ast.Constant(value=str(text)):
                return [[text]]
            case ast.JoinedStr():
                return self._joined(node)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                both = [of(side) or [[side]] for side in (left, right)]
                return [before + after for before, after in itertools.product(*both)]
            case ast.BinOp(op=ast.BitOr()):
                return of(node.left, node.right)
            case ast.IfExp():
                return of(node.body, node.orelse)
            case ast.BoolOp() | ast.Dict():
                return of(*node.values)
            case ast.List() | ast.Tuple() | ast.Set():
                return of(*node.elts)
            case ast.NamedExpr() | ast.Subscript() | ast.Starred():
                return of(node.value)
            case ast.Call(func=ast.Attribute(value=value, attr="get" | "strip" | "rstrip" | "pop")):
                return of(value)
            case ast.Call(func=ast.Attribute(value=value, attr="format"), args=[argument]):
                texts = [parts[0].partition("{}") for parts in of(value) if isinstance(parts[0], str)]
                return [[before, argument, after] for before, hole, after in texts if hole]
            case ast.Call(func=ast.Name(id=name)):
                return of(*self._returned(name))
            case ast.Attribute():
                return of(*(self._returned(node.attr) if self._is_property(node) else self.attributes[node.attr]))
            case ast.Name():
                return of(*self._values(node, quiet))
        return []

    def _is_property(self, node):
        functions = self.functions.get(node.attr, []) if isinstance(node, ast.Attribute) else []
        return any(ast.unparse(each) == "property" for function in functions for each in function.decorator_list)

    def _returned(self, name):
        """What functions of that name return."""
        return [
            node.value
            for function in self.functions.get(name, [])
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and node.value is not None and _function_of(node) is function
        ]

    def _joined(self, node):
        """An f-string: a hole of few known texts is written out, any other stays."""
        made = [[]]
        for part in node.values:
            if isinstance(part, ast.Constant):
                choices = [[part.value]]
            else:
                choices = [[part.value]]
                if isinstance(part.value, ast.IfExp | ast.Name) and part.format_spec is None and part.conversion < 0:
                    known = self.variants(part.value, quiet=True)
                    plain = all(isinstance(each, str) for parts in known for each in parts)
                    complete = isinstance(part.value, ast.IfExp) and len(known) == 2 or self._only_local(part.value)
                    if known and plain and complete and len(known) <= MOST:
                        choices = known
            made = [before + choice for before in made for choice in choices]
        return made[:12]

    def _only_local(self, node):
        """Whether the name's values are all literals of its own function."""
        if not isinstance(node, ast.Name):
            return False
        values = self._values(node, quiet=True)
        function = _function_of(node)
        return (
            bool(values)
            and function is not None
            and all(_literal(value) and _function_of(value) is function for value in values)
        )

    def _values(self, node, quiet):
        """The expressions that the name may stand for."""
        function = _function_of(node)
        while function is not None:
            arguments = function.args
            if node.id in [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]:
                bound = self._bound(function).get(node.id, [])
                if quiet:
                    return [*self._handed(function.name, node.id), *bound]
                self.handed_on.append((function.name, node.id))
                return bound
            if node.id in self._bound(function):
                return self._bound(function)[node.id]
            function = _function_of(function)
        return self.globals[node.id]

    def _bound(self, function):
        """{name: expressions that are assigned to it in the function}."""
        if function not in self.bound:
            bound = self.bound[function] = defaultdict(list)
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    pairs = [pair for target in node.targets for pair in _pairs(target, node.value)]
                elif isinstance(node, ast.AugAssign | ast.NamedExpr):
                    pairs = _pairs(node.target, node.value)
                elif isinstance(node, ast.For | ast.comprehension):
                    pairs = self._looped(node.target, node.iter)
                else:
                    continue
                for name, value in pairs:
                    bound[name].append(value)
        return self.bound[function]

    def _looped(self, target, over):
        """(name, expression) for what a loop's names stand for, where what it goes over is written down."""
        match over:
            case ast.Call(func=ast.Attribute(attr="product")):
                columns = [self._elements(each) or [ast.Constant(0)] for each in over.args]
                rows = [ast.Tuple(list(row)) for row in itertools.product(*columns)]
            case ast.Call(func=ast.Name(id="enumerate")):
                rows = [ast.Tuple([ast.Constant(0), each]) for each in self._elements(over.args[0])]
            case ast.Call(func=ast.Name(id="zip")):
                columns = map(self._elements, over.args)
                rows = [ast.Tuple(list(row)) for row in itertools.zip_longest(*columns, fillvalue=ast.Constant(0))]
            case _:
                rows = self._elements(over)
        return [pair for row in rows for pair in _pairs(target, row)]

    def _elements(self, node):
        found = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "items":
            tables = [table for table in self._tables(node.func.value) if isinstance(table, ast.Dict)]
            pairs = [pair for table in tables for pair in zip(table.keys, table.values) if pair[0] is not None]
            return [ast.Tuple(list(pair)) for pair in pairs]
        for table in self._tables(node):
            if isinstance(table, ast.Dict):
                found += [key for key in table.keys if key is not None]
            elif isinstance(table, ast.List | ast.Tuple | ast.Set):
                found += table.elts
        return found

    def _tables(self, node):
        """The literals that an expression may be."""
        if isinstance(node, ast.Name):
            return [each for value in self._values(node, True) if value is not node for each in self._tables(value)]
        if isinstance(node, ast.BinOp):
            return self._tables(node.left) + self._tables(node.right)
        return [node]


def _literal(node):
    if isinstance(node, ast.IfExp):
        return _literal(node.body) and _literal(node.orelse)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _parameters(function):
    arguments = function.args
    names = [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    return names[1:] if names[:1] == ["self"] else names


def _default(function, parameter):
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    pairs = list(zip(reversed(positional), reversed(arguments.defaults)))
    pairs += [(each, value) for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults) if value]
    return [value for each, value in pairs if each.arg == parameter]


def _called(call):
    return getattr(call.func, "id", None) or getattr(call.func, "attr", None)


def _function_of(node):
    node = getattr(node, "parent", None)
    while node is not None and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node = getattr(node, "parent", None)
    return node


def _pairs(target, value):
    """(name, expression) for each name that an assignment binds."""
    if isinstance(target, ast.Subscript):
        target = target.value
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List):
        if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
            for each, its in zip(target.elts, value.elts):
                yield from _pairs(each, its)
        elif isinstance(value, ast.IfExp):
            yield from _pairs(target, value.body)
            yield from _pairs(target, value.orelse)


def template(parts):
    """The parts as one text; an expression becomes a hole that is named after it."""
    text, names = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            name = _hole(part)
            number = sum(each == name for each in names)
            names.append(name)
            text += f"{{{name}{number + 1 if number else ''}}}"
    return text


def _hole(expression):
    while isinstance(expression, ast.Subscript) and isinstance(expression.slice, ast.Constant):
        if isinstance(expression.slice.value, str):
            expression = ast.Name(expression.slice.value)
        else:
            expression = expression.value
    if isinstance(expression, ast.Attribute):
        expression = ast.Name(expression.attr)
    name = expression.id if isinstance(expression, ast.Name) else "value"
    name = re.sub("[^a-z_0-9]+", "_", name.lower()).strip("_")
    return name if re.fullmatch("[a-z][a-z_0-9]*", name) else "value"
