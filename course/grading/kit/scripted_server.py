"""A server of scripted behaviour, for answers that are clients. It runs in the runner.

    with ScriptedServer(ok_json({"result": "hi"})) as server:
        ... server.url ...
        assert [request.target for request in server.requests] == ["/chat"]

A script is a list, worked through for each request: bytes are sent, numbers are seconds to wait,
SILENCE waits until the client goes or the server ends, RESET breaks the connection. Then the
connection is closed.

Not covered: several requests on one connection, TLS, HTTP/2.
"""

import contextlib
import json
import socket
import struct
import threading
from dataclasses import dataclass

SILENCE = "silence"
RESET = "reset"


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def path(self):
        """The target without a query."""
        return self.target.partition("?")[0]

    @property
    def data(self):
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class ScriptedServer:
    """Answers every request as the script says, and keeps what came."""

    def __init__(self, script):
        self.script = script
        self.requests: list[Request] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends it and all its connections."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with connection, contextlib.suppress(OSError, ValueError):
            request = read_request(connection)
            if request is None:
                return
            self.requests.append(request)
            for step in self.script:
                if step == SILENCE:
                    self._until_gone(connection)
                elif step == RESET:
                    linger_for_0_s = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_0_s)
                elif isinstance(step, bytes):
                    connection.sendall(step)
                else:
                    self._closing.wait(step)

    def _until_gone(self, connection):
        connection.settimeout(0.05)
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(4096):
                    return


class NobodyListens:
    """An address that refuses connections for as long as this is open."""

    def __enter__(self):
        # bound without listening: no one else can take the port meanwhile
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._socket.close()


def response(status, body, content_type="application/json", **headers):
    """A whole HTTP response as bytes; `body` is bytes, or text in UTF-8."""
    body = body.encode() if isinstance(body, str) else body
    return head(status, content_type, content_length=len(body), **headers) + body


def head(status, content_type="application/json", **headers):
    """The status line and the headers; `content_length=5` is `content-length: 5`."""
    headers = {"content_type": content_type, **headers}
    lines = [f"HTTP/1.1 {status} Scripted", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def ok_json(data):
    """A script: 200 with that JSON."""
    return [response(200, json.dumps(data, ensure_ascii=False))]


def read_request(connection):
    """The request, or None if the client left before it was whole."""
    with connection.makefile("rb") as reader:
        first = reader.readline().decode("latin-1").split()
        if len(first) != 3:
            return None
        headers = {}
        while line := reader.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if "chunked" in headers.get("transfer-encoding", ""):
            body = b""
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
        else:
            size = int(headers.get("content-length", 0))
            body = reader.read(size)
            if len(body) < size:
                return None
        return Request(first[0], first[1], headers, body)
