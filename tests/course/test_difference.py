"""What leads from an answer to the reference: all that matters, and nothing that is only style."""

import ast

import pytest

from course.difference import difference
from course.manifest import exercises

REFERENCE = '''\
import asyncio
from dataclasses import dataclass, field

from fastapi import FastAPI


def ask(client, text, tries=3):
    """Ask until an answer comes."""
    for attempt in range(tries):
        try:
            answer = client.get(text)
            total = answer.size - answer.cost
            return f"{answer}, {total}"
        except OSError as error:
            last = error
        else:
            last = None
    raise last


def create_app(handler):
    app = FastAPI()
    sent = 0

    @app.get("/")
    async def health(name: str):
        nonlocal sent
        sent += 1
        return {"sent": sent, "name": name}

    return app
'''

STYLE = {
    "quotes": ('"/"', "'/'"),
    "a docstring": ('    """Ask until an answer comes."""\n', '    """Mine.\n\n    In lines."""\n'),
    "no docstring": ('    """Ask until an answer comes."""\n', ""),
    "comments": ("        else:\n", "        # what now\n        else:  # well\n            # none\n"),
    "blank lines": ("    sent = 0\n", "\n\n    sent = 0\n\n"),
    "broken lines": ("client.get(text)", "client.get(\n                text,\n            )"),
    "annotations": ("(client, text, tries=3)", "(client: object, text: str, tries: int = 3) -> str"),
    "an annotated variable": ("sent = 0", "sent: int = 0"),
    "imports in another order": (
        "import asyncio\nfrom dataclasses import dataclass, field\n",
        "from dataclasses import field\nfrom dataclasses import dataclass\nimport asyncio\n",
    ),
    "a variable": ("answer", "reply"),
    "two variables": ("total", "answer_total"),
    "a caught error": ("error", "problem"),
    "a nonlocal variable": ("sent", "count"),
    "a function in a function": ("health", "is_up"),
}


@pytest.mark.parametrize("old, new", STYLE.values(), ids=STYLE)
def test_style_is_left_out(old, new):
    mine = REFERENCE.replace('"sent"', "'SENT'").replace(old, new).replace("'SENT'", '"sent"')
    assert mine != REFERENCE
    ast.parse(mine)
    assert difference(mine, REFERENCE) == (1.0, [])


MEANT = {
    "variables that are swapped": ("answer.size - answer.cost", "answer.size - total.cost"),
    "a variable for another": ("raise last", "raise attempt"),
    "a number": ("sent = 0", "sent = 1"),
    "a parameter's name": ("tries", "times"),
    "an attribute": ("answer.cost", "answer.price"),
    "an endpoint's annotation": ("name: str", "name: int"),
    "a decorator": ('@app.get("/")', '@app.post("/")'),
    "async": ("async def health", "def health"),
    "another block": ("        else:\n            last", "        finally:\n            last"),
    "an error's type": ("except OSError as", "except Exception as"),
    "an import": ("import asyncio\n", ""),
}


@pytest.mark.parametrize("old, new", MEANT.values(), ids=MEANT)
def test_what_matters_stays(old, new):
    mine = REFERENCE.replace(old, new)
    shared, lines = difference(mine, REFERENCE)
    mine, theirs = ({line.strip() for line in text.splitlines()} for text in (mine, REFERENCE))
    taken = {line[1:].strip() for line in lines if line[0] == "-"}
    given = {line[1:].strip() for line in lines if line[0] == "+"}
    assert shared > 0.7 and taken >= mine - theirs and given >= theirs - mine


def test_what_matters_is_shown_in_the_learners_words():
    mine = REFERENCE.replace("answer", "reply").replace("    sent = 0\n", "    sent = 1  # one\n")
    assert difference(mine, REFERENCE)[1] == [
        *("@@", " def create_app(handler):", "     app = FastAPI()", "-    sent = 1  # one", "+    sent = 0"),
        *('     @app.get("/")', "     async def health(name: str):", "         nonlocal sent"),
    ]


def test_two_variables_never_become_one():
    reference = "def f(a):\n    x = a\n    y = 2\n    return x + y\n"
    mine = "def f(a):\n    x = a\n    y = 2\n    return x + x\n"
    assert difference(mine, reference)[1][-2:] == ["-    return x + x", "+    return x + y"]
    mine = "def f(a):\n    y = a\n    x = 2\n    return y + x\n"
    assert difference(mine, reference) == (1.0, [])


def test_a_statement_in_anothers_line_is_shown():
    lines = difference("def f(a):\n    if a: return 1\n", "def f(a):\n    if a:\n        return 2\n")[1]
    assert "-    if a: return 1" in lines and "+        return 2" in lines


@pytest.mark.parametrize("each", exercises().values(), ids=lambda each: each.id)
def test_a_reference_written_otherwise_is_the_reference(each):
    source = each.solution_file.read_text(encoding="utf-8")
    assert difference(ast.unparse(ast.parse(source)), source) == (1.0, [])
