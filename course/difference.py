"""What leads from one answer to another, without what is only style.

Left out are docstrings, comments, blank lines, quotes, where lines break, the order of imports, names of
variables and functions inside a function, and type annotations. Those of fields and of functions inside a
function stay: pydantic and FastAPI read them.

Not covered: the same in other words, such as a comprehension in place of a loop; and names that can be seen
from outside, which are those of functions, parameters and attributes.
"""

import ast
import copy
import difflib
from collections import Counter
from dataclasses import dataclass

CONTEXT = 2
"""How many statements that are the same are shown before and after those that differ."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")


@dataclass
class _Statement:
    """A statement without its blocks: what stands in them are statements of their own."""

    node: ast.AST
    place: tuple[str, ...]
    """The functions and blocks that it stands in, from the outermost."""
    lines: dict[int, str]
    """Its code by line number."""
    function: tuple[str, ...] = ()
    """Where the outermost function begins that it stands in."""
    variables: frozenset[str] = frozenset()
    """That function's."""

    def code(self, names):
        """In one form, with each variable by the name that `names` has for it."""
        return self._renamed({name: names[self.function, name] for name in self.variables})

    def shape(self):
        """In one form, with all variables alike."""
        return self._renamed(dict.fromkeys(self.variables, "_"))

    def _renamed(self, names):
        return self.place, ast.unparse(_Renamed(names).visit(copy.deepcopy(self.node)))

    def used(self):
        """The variables in it, each as often as it occurs."""
        seen = _Renamed({name: name for name in self.variables})
        seen.visit(copy.deepcopy(self.node))
        return seen.found


class _Renamed(ast.NodeTransformer):
    def __init__(self, names):
        self.names = names
        self.found = []

    def generic_visit(self, node):
        for field in ("id", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and name in self.names and not isinstance(node, ast.alias):
                self.found.append(name)
                setattr(node, field, self.names[name])
        if isinstance(node, ast.Nonlocal):
            self.found += [name for name in node.names if name in self.names]
            node.names = [self.names.get(name, name) for name in node.names]
        return super().generic_visit(node)


def difference(mine: str, theirs: str) -> tuple[float, list[str]]:
    """Compares two sources.

    Returns:
        (shared, lines): which part of their statements is the same, from 0 to 1; and the lines of a unified
        diff without its head, none where they differ in style only.

    Raises:
        SyntaxError, ValueError: one of them is not Python.
    """
    my_imports, my_code = _statements(mine)
    their_imports, their_code = _statements(theirs)
    my_names, their_names = _names(my_code, their_code)
    codes = [each.code(my_names) for each in my_code], [each.code(their_names) for each in their_code]
    matcher = difflib.SequenceMatcher(None, *codes, autojunk=False)
    hunks = [_lacking(my_imports, their_imports, "-") + _lacking(their_imports, my_imports, "+")]
    for group in matcher.get_grouped_opcodes(CONTEXT):
        hunk = []
        for what, begin, end, their_begin, their_end in group:
            if what == "equal":
                hunk += _marked(my_code[begin:end], " ")
            else:
                hunk += _marked(my_code[begin:end], "-") + _marked(their_code[their_begin:their_end], "+")
        hunks.append(hunk)
    return matcher.ratio(), [line for hunk in hunks if hunk for line in ["@@", *hunk]]


def _statements(source):
    """The imports of a module, and all its other statements, each in the source's order."""
    source_lines = source.splitlines()
    tree = ast.parse(source)
    left_out = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and isinstance(ast.get_docstring(node), str):
            docstring = node.body.pop(0)
            left_out |= set(range(docstring.lineno, docstring.end_lineno + 1))
    found, ended = [], 0

    def add(node, place, function, variables):
        nonlocal ended
        named = isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not function
        children = [(block, child) for block in BLOCKS for child in _block(node, block)]
        begin = _begin(node)
        end = max(begin, _begin(children[0][1]) - 1) if children else node.end_lineno
        # from the end of the last one on: an `else:` is nobody's
        numbers = [n for n in range(min(ended + 1, begin), end + 1) if n not in left_out]
        lines = {n: source_lines[n - 1] for n in numbers}
        if children or isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            code = ()
        else:
            code = range(begin, end + 1)
        lines = {n: line for n, line in lines.items() if n in code or line.strip() and line.strip()[0] != "#"}
        found.append(_Statement(_plain(node, bool(function)), place, lines, function, variables))
        ended = max(ended, end)
        within = (*place, node.name if named else type(node).__name__)
        if named and isinstance(node, FUNCTIONS):
            function, variables = within, _variables(node)
        for block, child in children:
            add(child, (*within, block), function, variables)
        ended = max(ended, getattr(node, "end_lineno", 0))

    for node in tree.body:
        add(node, (), (), frozenset())
    return [[each for each in found if _is_import(each) == wanted] for wanted in (True, False)]


def _block(node, name):
    block = getattr(node, name, None)
    return block if isinstance(block, list) else []


def _begin(node):
    if isinstance(node, ast.match_case):
        return node.pattern.lineno
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _plain(node, inside):
    """The statement without blocks, and without annotations that nobody but a reader needs."""
    plain = copy.copy(node)
    for name in BLOCKS:
        if _block(node, name):
            setattr(plain, name, [])
    if isinstance(node, ast.AnnAssign) and inside and node.value:
        plain = ast.Assign([node.target], node.value, lineno=node.lineno)
    if isinstance(node, FUNCTIONS) and not inside and not node.decorator_list:
        plain = copy.deepcopy(plain)
        plain.returns = None
        for each in ast.walk(plain.args):
            if isinstance(each, ast.arg):
                each.annotation = None
    return plain


def _variables(function):
    """What a function's names may be without anybody outside of it seeing a difference."""
    names, others = set(), set()
    for node in ast.walk(function):
        if isinstance(node, ast.ClassDef):
            others |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            others |= {each.name for each in ast.walk(node) if isinstance(each, FUNCTIONS)}
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (*FUNCTIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            names.add(node.name)
        elif isinstance(node, ast.Global):
            others |= set(node.names)
        elif isinstance(node, ast.arg):
            others.add(node.arg)
    return frozenset(names - others - {function.name, None})


def _names(mine, theirs):
    """For both sides {(function, variable): its name in the comparison}. A variable of mine has the name of
    the one of theirs that most often stands in its place, and no two have one name."""
    their_names = {(each.function, name): name for each in theirs for name in each.variables}
    pairs = Counter()
    shapes = [each.shape() for each in mine], [each.shape() for each in theirs]
    for block in difflib.SequenceMatcher(None, *shapes, autojunk=False).get_matching_blocks():
        for n in range(block.size):
            my, their = mine[block.a + n], theirs[block.b + n]
            pairs.update((my.function, *names) for names in zip(my.used(), their.used(), strict=True))
    my_names, taken = {}, set()
    for (function, my, their), _ in pairs.most_common():
        if (function, my) not in my_names and (function, their) not in taken:
            my_names[function, my] = their
            taken.add((function, their))
    for each in mine:
        for name in each.variables:
            my_names.setdefault((each.function, name), f"my {name}")
    return my_names, their_names


def _is_import(statement):
    return isinstance(statement.node, (ast.Import, ast.ImportFrom)) and not statement.place


def _imported(statement):
    node = statement.node
    origin = (getattr(node, "level", 0), getattr(node, "module", None))
    return {(*origin, alias.name, alias.asname) for alias in node.names}


def _lacking(some, others, mark):
    """Those that import what the others do not, each line with the mark."""
    known = set().union(*map(_imported, others))
    return _marked([each for each in some if _imported(each) - known], mark)


def _marked(statements, mark):
    # two statements in one line are one line
    lines = {number: line for each in statements for number, line in each.lines.items()}
    return [mark + line for _, line in sorted(lines.items())]
