"""The question before anything is sent to a server on another computer."""

import ipaddress
import sys
from urllib.parse import urlsplit

from course.desk import Refused
from course.words import words


def require_url(url: str) -> None:
    """Does nothing if it is an address that can be asked.

    Raises:
        Refused: it has no host, another scheme than http, or cannot be read.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise Refused(words("{url} is not a URL such as http://127.0.0.1:8000", url=url))


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
    require_url(url)
    if yes or is_here(url):
        return
    print(words("{what} will be sent to {url}.", what=what, url=url), file=sys.stderr)
    if not sys.stdin.isatty() or _asked(words("Continue? [y/N] ")) not in ("y", "yes"):
        raise Refused(words("Nothing was sent. To skip this question, add --yes."))


def _asked(question):
    # input() would write it to standard output, which may be a file of JSON
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower()
