"""Server-sent events from the answer's server, read as they arrive.

    stream = Stream(room, base_url, {"prompt": "hi"})    # POST /chat_stream, read in the background
    stream.wait(lambda: len(stream.events) == 2)
    stream.leave()                                       # as a client that closes the tab
    stream.reply()                                       # waits for the end: status, headers, body

The format is the HTML standard's: comments, fields in any order, several data lines, CRLF or CR, and
an event that no blank line ends is none.
"""

import codecs
import contextlib
import http.client
import json
import socket
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from course.grading.kit.http import MOST_BODY, Reply


@dataclass(frozen=True)
class Event:
    name: str
    """The `event` field; "" without one."""
    data: str
    """The data lines, joined by newlines."""

    @property
    def json(self):
        """The data as JSON; None where it is none."""
        try:
            return json.loads(self.data)
        except ValueError:
            return None

    def __str__(self):
        name = f"event: {self.name}\n" if self.name else ""
        return f"{name}data: {self.data}\n\n"


class EventReader:
    """Bytes in, events out."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._after_cr = "", False
        self._name, self._data = "", []

    def feed(self, data, end=False):
        """The events that these bytes complete.

        Raises:
            UnicodeDecodeError: they are not UTF-8.
        """
        found = []
        for character in self._decoder.decode(data, end):
            if character == "\n" and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = character == "\r"
            if character not in "\r\n":
                self._line += character
                continue
            line, self._line = self._line, ""
            if line:
                self._field(line)
            elif event := self._dispatched():
                found.append(event)
        return found

    @property
    def unfinished(self):
        """What has come of an event that no blank line has ended yet."""
        return bool(self._line or self._name or self._data)

    def _field(self, line):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)

    def _dispatched(self):
        name, data = self._name, self._data
        self._name, self._data = "", []
        # a name without data is no event
        return Event(name, "\n".join(data)) if data else None


class Stream:
    """A POST whose answer is read in the background."""

    def __init__(self, room, base_url, body, *, path="/chat_stream", headers=None, address=None):
        """Args:
            body: JSON to be, or bytes as they are.
            address: the loopback address that the client comes from.

        Raises:
            OSError: the machine has no such address.
            Ended: the server takes no connection.
        """
        self.room, self.what = room, f"POST {path}"
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        self.sent = f"{self.what} {data.decode('utf-8', 'replace') or 'with an empty body'}"
        self.status, self.headers, self.body = None, httpx.Headers(), b""
        self.events: list[Event] = []
        self.broken = None
        """The error with which the answer broke off."""
        self.unfinished = False
        """The stream ended in the middle of an event."""
        self._ended = False
        self._changed = threading.Condition()
        place = urlsplit(base_url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(place.hostname, place.port, source_address=(address, 0) if address else None)
        try:
            self._connection.connect()
        except ConnectionRefusedError:
            raise room.broken(f"{self.what}: the server no longer accepts connections") from None
        self._socket = self._connection.sock
        self.port = self._socket.getsockname()[1]
        headers = {"content-type": "application/json", **(headers or {})}
        threading.Thread(target=self._run, args=(place.path + path, data, headers), daemon=True).start()

    def wait(self, holds, limit_s=None):
        """Waits until `holds()`, asked at every event and at the end; whether it came to be.

        It gives up when the answer has ended, or after the limit.
        """
        with self._changed:
            self._changed.wait_for(lambda: holds() or self._ended, limit_s or self.room.limit_s)
            return bool(holds())

    def ended(self, limit_s=None):
        """Waits for the end of the answer; whether it came."""
        return self.wait(lambda: self._ended, limit_s)

    def begun(self, limit_s=None):
        """Waits for the status; whether it came."""
        return self.wait(lambda: self.status is not None, limit_s)

    def reply(self, limit_s=None):
        """The whole Reply, at the end.

        Raises:
            Hung: it did not end within the limit.
            Ended: the connection broke, or the answer's process ended.
        """
        if not self.ended(limit_s):
            raise self.room.hung(f"{self.what} never ended", got=str(self) or None)
        if self.broken:
            mistake = f"{self.what}: the connection broke before the whole answer had arrived"
            if isinstance(self.broken, UnicodeDecodeError):
                mistake = f"{self.what}: the answer is not UTF-8 ({self.broken})"
            raise self.room.broken(mistake)
        return Reply(self.status, self.headers, self.body)

    def leave(self):
        """Closes the connection, as a client does that is no longer interested."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def leave_and_be_missed(self):
        """Leaves, and returns when the server knows and its event loop has acted on it."""
        self.leave()
        _be_missed(self.room, self.port)

    @property
    def text(self):
        """The body as far as it has come."""
        return self.body.decode("utf-8", "replace")

    def __str__(self):
        return "" if self.status is None else f"{self.status} {self.text}"

    def _run(self, path, data, headers):
        reader = EventReader()
        try:
            self._connection.request("POST", path, data, headers)
            response = self._connection.getresponse()
            with self._changed:
                self.status = response.status
                self.headers = httpx.Headers(response.getheaders())
                self._changed.notify_all()
            while piece := response.read1():
                self._take(piece, reader.feed(piece))
            self._take(b"", reader.feed(b"", end=True))
        except UnicodeDecodeError as error:
            self.broken = error
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            # the last two also when leave() has closed the connection meanwhile
            self.broken = error
        with self._changed:
            self.unfinished = reader.unfinished
            self._ended = True
            self._changed.notify_all()
        self._connection.close()

    def _take(self, piece, events):
        with self._changed:
            self.body += piece
            self.events += events
            self._changed.notify_all()
        if len(self.body) > MOST_BODY:
            raise http.client.HTTPException("the answer is incomplete")


class Unread:
    """A POST whose answer is not read: the connection takes some of it, and then the server waits."""

    def __init__(self, room, base_url, body, *, path="/chat_stream"):
        self.room = room
        data = json.dumps(body).encode()
        self.sent = f"POST {path} {data.decode()}, from a client that does not read the answer"
        place = urlsplit(base_url)
        self._socket = socket.socket()
        # before the connection is made, or it has no effect
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect((place.hostname, place.port))
        self.port = self._socket.getsockname()[1]
        self._socket.sendall(
            f"POST {path} HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )

    def leave_and_be_missed(self):
        """As Stream's."""
        self._socket.close()
        _be_missed(self.room, self.port)


def _be_missed(room, port):
    room.wait(
        lambda: not room.connected(port),
        "the event loop is blocked: the server did not notice that a client had left",
        room.limit_s * 0.3,
    )
    room.turns()


def has_address(address):
    """Whether a client on this machine can come from that loopback address."""
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
