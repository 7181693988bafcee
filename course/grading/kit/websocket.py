"""A WebSocket client in the runner, for answers that serve one. Silence and broken connections
become Mistakes.

    client = Client(room, base_url, "/ws")
    client.send({"prompt": "hi"})         # JSON; text and bytes are sent as they are
    client.frame()                        # the next one, a JSON object; waits, with the limit
    client.leave()                        # with a close frame, as a browser does
    client.vanish()                       # without a word: the connection is reset
    client.missed()                       # waits until the server has noticed

It reads only when it is asked for a frame.
"""

import contextlib
import json
import socket
import struct
import time
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from course.grading.mistakes import fail

MOST_FRAMES = 2000
"""That one client reads."""


class Closed(Exception):
    """The server has closed the connection, with this code; 1006 if without a close frame."""

    def __init__(self, code):
        self.code = code
        super().__init__(f"close code {code}")


class Client:
    """One connection."""

    def __init__(self, room, base_url, path, limit_s=None):
        self.room = room
        limit_s = limit_s or room.limit_s
        url = urlsplit(base_url)
        self._protocol = ClientProtocol(parse_uri(f"ws://{url.netloc}{path}"), max_size=None)
        self._events, self._parts, self._read = [], [], 0
        try:
            self._socket = socket.create_connection((url.hostname, url.port), limit_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._protocol.send_request(self._protocol.connect())
            self._flush()
            response = self._next(time.monotonic() + limit_s)
        except TimeoutError:
            raise room.hung(f"the server did not accept a connection to {path}") from None
        except OSError as error:
            raise room.broken(f"a connection to {path} broke immediately: {error}") from None
        except Closed:
            raise room.broken(f"a connection to {path} broke before it was accepted") from None
        if self._protocol.state is not State.OPEN:
            status = f"{response.status_code} {response.reason_phrase}"
            raise room.broken(f"a connection to {path} was refused: {status}")
        self.port = self._socket.getsockname()[1]

    def send(self, data, later=False):
        """Sends one frame; to a server that has closed, none.

        `later` means together with what is sent next, so that both arrive at once.
        """
        if self._protocol.state is not State.OPEN:
            return
        if isinstance(data, bytes):
            self._protocol.send_binary(data)
        else:
            text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            self._protocol.send_text(text.encode())
        if not later:
            with contextlib.suppress(OSError):
                self._flush()

    def frame(self, limit_s=None):
        """The next frame, a JSON object; None if none came within the limit.

        Raises:
            Closed: the server has closed the connection.
            Mistake: the frame is binary, no JSON, or no object.
        """
        try:
            opcode, data = self._message(time.monotonic() + (limit_s or self.room.limit_s))
        except TimeoutError:
            return None
        self._read += 1
        if self._read > MOST_FRAMES:
            self.room.spoiled = True
            fail("the frames never stop", got=data.decode("utf-8", "replace"))
        if opcode is Opcode.BINARY:
            fail("a binary frame arrived: send text frames (send_json, send_text)", got=repr(data))
        text = data.decode("utf-8", "replace")
        try:
            frame = json.loads(text)
        except ValueError:
            fail("a frame is not JSON: use send_json or json.dumps", got=text)
        if not isinstance(frame, dict):
            fail("a frame is not a JSON object", got=text)
        return frame

    def leave(self):
        """Sends a close frame and nothing after it."""
        with contextlib.suppress(OSError):
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
            self._flush()
            self._socket.shutdown(socket.SHUT_WR)

    def vanish(self, half_a_frame=False):
        """Resets the connection, as when the program is killed."""
        with contextlib.suppress(OSError):
            if half_a_frame:
                self._socket.sendall(b"\x81\xfe\x00")
            linger_for_0_s = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_0_s)
        self._socket.close()

    def missed(self, limit_s=1.0):
        """Waits until the server knows that this client has left, and its event loop has acted on
        it. A server that does not read any more cannot know: then it waits for the limit."""
        until = time.monotonic() + limit_s
        while self.room.connected(self.port) and time.monotonic() < until:
            # what is still under way keeps the server from closing
            with contextlib.suppress(OSError, Closed):
                self._message(time.monotonic() + 0.002)
            time.sleep(0.001)
        self.room.turns()

    def _message(self, until):
        while True:
            frame = self._next(until)
            if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(frame)
                if frame.fin:
                    parts, self._parts = self._parts, []
                    return parts[0].opcode, b"".join(bytes(part.data) for part in parts)

    def _next(self, until):
        """The next event: the response to the handshake, then frames."""
        while not self._events:
            if self._protocol.close_rcvd is not None:
                raise Closed(self._protocol.close_rcvd.code)
            if self._protocol.state is State.CLOSED:
                raise Closed(1006)
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                data = b""
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            self._events += [
                event
                for event in self._protocol.events_received()
                if not isinstance(event, Frame) or event.opcode is not Opcode.CLOSE
            ]
            with contextlib.suppress(OSError):
                self._flush()
        return self._events.pop(0)

    def _flush(self):
        self._socket.sendall(b"".join(self._protocol.data_to_send()))
