"""What can be wrong with an answer, as exceptions that hold data: the mistake in one sentence, and the
facts of this case by name. `verdict` makes text of them.
"""


class Mistake(AssertionError):
    """A test's finding: what the learner did, and what was `sent`, `expected`, `got`, and `where`."""

    status = "failed"
    kind = "mistake"

    def __init__(self, mistake, *, sent=None, expected=None, got=None, where=None, detail=""):
        """Args:
        mistake: a sentence that holds nothing of what was sent and came back.
        sent, expected, got, where: text, or data that JSON can hold.
        detail: a traceback or output, for `--full` only.
        """
        facts = {"sent": sent, "expected": expected, "got": got, "where": where}
        self.mistake, self.detail = mistake, detail
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}
        super().__init__(mistake, self.facts)


class NotWritten(Mistake):
    """The answer is still the stub, or its file does not exist."""

    kind = "not_written"


class NotLoaded(Mistake):
    """The answer does not parse, fails at import, or lacks what the exercise asks for."""

    kind = "not_loaded"


class Raised(Mistake):
    """The answer raised where it should not have. `error` is as `Inside.describe` has it."""

    kind = "raised"

    def __init__(self, error, call="your code"):
        self.error = error
        super().__init__(
            f"{call} raised {error['type']}",
            got=error["said"],
            where=error["where"],
            detail=error["traceback"],
        )


class Hung(Mistake):
    """The answer did not come to an end."""

    status, kind = "timeout", "hung"


class Ended(Mistake):
    """The answer's process ended while it was needed."""

    kind = "ended"


def fail(mistake, **facts):
    """Raises the Mistake; `facts` are sent, expected, got and where."""
    raise Mistake(mistake, **facts)


def require(holds, mistake, **facts):
    """Raises the Mistake unless `holds` is exactly True: a truthy object is not enough."""
    if holds is not True:
        raise Mistake(mistake, **facts)
