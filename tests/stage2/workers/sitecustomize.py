"""Python imports this first in every process that 2.5's tests start, and in the children of those.

`course.lessons.stage2` becomes the reporting app, which needs no model. Port 8000, which may well be
taken on this machine, becomes the port that COURSE_PORT_8000 names.
"""

import importlib.util
import os
import socket
import sys
from pathlib import Path

REAL_PORT = int(os.environ["COURSE_PORT_8000"])

built = []
"""The id of the process for each app that was built, also those from before a fork."""


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "course.lessons.stage2":
            file = Path(__file__).with_name("reporting_app.py")
            return importlib.util.spec_from_file_location(name, file)
        return None


_bind = socket.socket.bind


def _redirected(self, address):
    if isinstance(address, tuple) and address[1] == 8000:
        address = (address[0], REAL_PORT, *address[2:])
    return _bind(self, address)


sys.meta_path.insert(0, _Finder)
socket.socket.bind = _redirected
