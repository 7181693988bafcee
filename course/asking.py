"""The question before anything is sent to a server on another computer."""

import ipaddress
import sys
from urllib.parse import urlsplit

from course.desk import Refused
from course.grading.elsewhere import is_address
from course.words import words


def is_here(url: str) -> bool:
    """Whether the address is one of this computer's own."""
    try:
        host = urlsplit(url if "://" in url else f"http://{url}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ask_before_sending(url: str, what: str, yes: bool) -> None:
    """Asks on standard error, unless the server is on this computer or `yes` answers.

    Raises:
        Refused: the answer is no, or there is nobody to ask; or it is not an address.
    """
    if not is_address(url):
        raise Refused(words("{url} is not a URL such as http://127.0.0.1:8000", url=url))
    if yes or is_here(url):
        return
    print(words("{what} will be sent to {url}.", what=what, url=url), file=sys.stderr)
    if not sys.stdin.isatty() or _asked(words("Continue? [y/N] ")) not in ("y", "yes"):
        raise Refused(words("Nothing was sent. To skip this question, add --yes."))


def _asked(question):
    # input() would write it to standard output, which may be a file of JSON
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower()
