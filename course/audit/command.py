"""The command `course audit`: what it asks, what it prints and what it returns."""

import asyncio
import os
import sys

from rich.console import Console

from course.asking import ask_before_sending
from course.audit import CHECKS, FAILED, LIMIT_S, CannotAudit, audit, show
from course.audit.server import MOST_REQUESTS, Server
from course.desk import Refused
from course.words import words


def run(url, model, api_key_env, clients, only, as_json, junit, yes):
    """Examine the server at `url` and print what was found. Returns the exit code.

    Raises:
        Refused: there is nothing to examine, or the options make no sense.
    """
    unknown = [id for id in only or [] if id not in CHECKS]
    if unknown:
        raise Refused(words("There is no check {id}. The checks are: {known}.", id=unknown[0], known=", ".join(CHECKS)))
    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise Refused(words("The environment variable {name} is not set.", name=api_key_env))
    # with --json, only the JSON goes to standard output
    console = Console(stderr=as_json, soft_wrap=True, highlight=False)
    most = words(
        "Up to {requests} requests, for up to {minutes} minutes,", requests=MOST_REQUESTS, minutes=LIMIT_S // 60
    )
    ask_before_sending(url, most, yes)
    server = Server(url, model=model, key=key, clients=clients)

    def say(result):
        for line in show.lines(result):
            console.print(line)

    try:
        results = asyncio.run(audit(server, only, say))
    except CannotAudit as problem:
        raise Refused(str(problem)) from None
    except KeyboardInterrupt:
        raise Refused(words("Stopped.")) from None
    summary = words(
        "{url}, model {model}: {summary}", url=server.url, model=server.model, summary=show.summary(results)
    )
    console.print(f"\n{summary}")
    if junit:
        junit.write_text(show.as_junit(server.url, results) + "\n", encoding="utf-8")
    if as_json:
        sys.stdout.reconfigure(encoding="utf-8")
        print(show.as_json(server.url, server.model, results))
    return 1 if any(each.status == FAILED for each in results) else 0
