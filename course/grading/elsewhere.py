"""A server that runs already, in the place of a room: for tests that need nothing but its address.

Which those are says `elsewhere` in exercises.toml. Of what goes on inside such a server a test sees nothing: there is
no model by script in it, no log, and no probe.
"""

from urllib.parse import urlsplit

from course.grading.mistakes import Ended, Hung
from course.words import words

LIMIT_S = 60.0
"""How long an answer may take: its model may be a real one."""


class NoServer(Exception):
    """No server answers at that address. The message says why."""


class Elsewhere:
    """What a test uses of a Room. `serve` gives the server's base URL, whatever app it is asked for."""

    elsewhere = True
    spoiled = False

    def __init__(self, base_url):
        self.base_url, self.limit_s = base_url, LIMIT_S

    def load(self):
        """Nothing: the answer runs already."""

    def close(self):
        """Nothing: it runs on."""

    def serve(self, scene, **arguments):
        return self.base_url

    def hung(self, mistake, **facts):
        return Hung(mistake, **facts)

    def broken(self, mistake, **facts):
        return Ended(mistake, **facts)

    def last_error(self):
        return None, None

    def printed(self):
        return ""


def base_url_of(url):
    """The address without its /v1: "127.0.0.1:8000/v1/" is http://127.0.0.1:8000."""
    url = url if "://" in url else f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def is_address(url):
    """Whether it can be asked: http or https, with a host, and a port that is one."""
    try:
        parts = urlsplit(base_url_of(url))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def reach(url):
    """(base URL, name of the first model that it lists, or None) of a server.

    Raises:
        NoServer: none answers there.
    """
    import httpx  # slow

    if not is_address(url):
        raise NoServer(words("{url} is not a URL such as http://127.0.0.1:8000", url=url))
    base_url = base_url_of(url)
    try:
        answer = httpx.get(f"{base_url}/v1/models", timeout=10, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        why = error or type(error).__name__
        raise NoServer(words("No server answers at {url}: {why}", url=base_url, why=why)) from None
    try:
        name = answer.json()["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError):
        name = None
    return base_url, name if isinstance(name, str) else None
