"""A scripted server in step with the answer's clock, for answers that measure time.

    with Lockstep(room, scene, clients=2) as lockstep:  # the scene: clock = read_clock(clock_file)
        lockstep.perform({0.5: head(200), 1.0: b"..."}, {0.5: head(200), 0.75: CLOSE})
        result = lockstep.result()

The test moves the clock, sends, and goes on when the room is at rest: when each of its threads
sleeps, and none has run in between. So the answer sees everything at exactly the time at which it
was sent, however slow the machine is and however the answer is made (one event loop, threads).

Not covered: answers that measure in another process. Where /proc does not show threads (macOS,
Windows), rest is 30 ms without a change of the process's time.
"""

import contextlib
import select
import socket
import struct
import time

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = None

from course.grading.kit.clock import Clock
from course.grading.kit.rest import Resting
from course.grading.kit.scripted_server import RESET, read_request

CLOSE = "close"


class Arrived:
    """A connection and the request that came over it."""

    def __init__(self, connection):
        self.connection = connection
        self.request = read_request(connection)
        """None if the client left before it was whole."""

    def send(self, data):
        with contextlib.suppress(OSError):
            if data == CLOSE:
                self.close()
            elif data == RESET:
                linger_for_0_s = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_0_s)
                self.connection.close()
            else:
                self.connection.sendall(data)
                _until_taken(self.connection)

    def close(self):
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Lockstep:
    """Runs the scene in the background with `url` and `clock_file` as further arguments."""

    def __init__(self, room, scene, path="/chat_stream", **arguments):
        self.room = room
        self.clock = Clock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._arrived = []
        self._resting = Resting(room.pid)
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{path}"
        self._playing = room.start(scene, url=url, clock_file=self.clock.file, **arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for each in self._arrived:
            each.close()
        self._listener.close()
        # a scene that goes on although its server is gone is not to keep the next one waiting
        until = time.monotonic() + 1.0
        while not self._playing.done() and time.monotonic() < until:
            time.sleep(0.002)
        self.room.spoiled = self.room.spoiled or not self._playing.done()
        self.clock.close()

    def arrivals(self, count, patience_s=0.5):
        """The next requests, at most `count`; fewer if no further one has come although the room
        has been at rest for `patience_s`, or if the scene is over."""
        found = []
        at_rest_since = None
        while len(found) < count and not self._playing.done():
            if select.select([self._listener], [], [], 0.002)[0]:
                connection, _ = self._listener.accept()
                connection.settimeout(self.room.limit_s)
                found.append(Arrived(connection))
                at_rest_since = None
            elif not self._resting.check():
                at_rest_since = None
            elif at_rest_since is None:
                at_rest_since = time.monotonic()
            elif time.monotonic() - at_rest_since > patience_s:
                break
        self._arrived += found
        self.rest()
        return found

    def step(self, seconds, sends=None):
        """Moves the clock, sends `{arrived: bytes}`, and waits until the room is at rest again.

        CLOSE instead of the bytes closes the connection, RESET breaks it as a crash does.
        """
        self.clock.move(seconds)
        for arrived, data in (sends or {}).items():
            arrived.send(data)
        self.rest()

    def perform(self, *scripts, patience_s=0.05):
        """Answers one request with each script: {seconds after it has come: what is sent}.

        Those that come at once are answered at once; where the answer sends one only after the
        other, they are answered one after the other. Returns how many came.
        """
        left = list(scripts)
        while left and (batch := self.arrivals(len(left), patience_s)):
            came, now = self.clock.now, left[: len(batch)]
            del left[: len(batch)]
            for at in sorted({at for script in now for at in script}):
                sends = zip(batch, now, strict=True)
                self.step(
                    came + at - self.clock.now,
                    {arrived: script[at] for arrived, script in sends if at in script},
                )
        return len(scripts) - len(left)

    def rest(self):
        """Waits until the room is at rest.

        Raises:
            Hung: it never is.
        """
        until = time.monotonic() + self.room.limit_s
        while not self._resting.check():
            if time.monotonic() > until:
                raise self.room.hung("your code never waits for anything from the server")

    def result(self):
        """What the scene returns."""
        return self._playing.result()


def _until_taken(connection):
    # what has been acknowledged has woken its reader
    if fcntl is None:
        return
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        left = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]
        if left == 0:
            return
        time.sleep(0.0002)
