"""What can be wrong with an answer, as exceptions whose text is the verdict's message.

A message says the mistake first, then one labelled line each: what was sent, what was expected,
what came, and where.
"""

import json

LONGEST_FACT = 190


class Mistake(AssertionError):
    """A test's finding. `str()` of it is what the learner reads."""

    status = "failed"

    def __init__(self, mistake, *, sent=None, expected=None, got=None, where=None, detail=""):
        self.mistake, self.detail = mistake, detail
        lines = [mistake]
        facts = {"sent": sent, "expected": expected, "got": got, "where": where}
        for label, fact in facts.items():
            if fact is not None:
                lines.append(f"  {label:<9} {short(fact)}")
        super().__init__("\n".join(lines))


class NotWritten(Mistake):
    """The answer is still the stub, or its file does not exist."""


class NotLoaded(Mistake):
    """The answer does not parse, fails at import, or lacks what the exercise asks for."""


class Raised(Mistake):
    """The answer raised where it should not have."""

    def __init__(self, error, call="the answer"):
        self.error = error
        super().__init__(
            f"{call} raised {error['type']}: {error['message']}".rstrip(": "),
            where=error["where"],
            detail=error["traceback"],
        )


class Hung(Mistake):
    """The answer did not come to an end."""

    status = "timeout"


class Ended(Mistake):
    """The answer's process ended while it was needed."""


def fail(mistake, **facts):
    """Raises the mistake; `sent`, `expected`, `got` and `where` become lines of their own."""
    raise Mistake(mistake, **facts)


def require(holds, mistake, **facts):
    """Raises the mistake unless `holds` is exactly True: a truthy object is not enough."""
    if holds is not True:
        raise Mistake(mistake, **facts)


def short(fact, longest=LONGEST_FACT):
    """A fact in one line: text as it is, data as JSON, the middle left out where it is long."""
    text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False, default=repr)
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    if len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text
