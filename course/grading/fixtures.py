"""The `room` that the autograder's tests use, as a pytest plugin.

Under the runner COURSE_ANSWER names the answer; under plain pytest it is the reference solution.
COURSE_LIMIT_S replaces the exercises' own limits: raise it on a machine that is very slow.
"""

import dataclasses
import os
import re

import pytest

from course.grading.room import Room
from course.manifest import exercise


@pytest.fixture
def room(request):
    """A fresh room with the answer loaded."""
    with new_room(request) as room:
        room.load()
        yield room


@pytest.fixture
def another_room(request):
    """Makes one more room with the same answer, for exercises about several processes."""
    rooms = []

    def make():
        rooms.append(new_room(request))
        rooms[-1].load()
        return rooms[-1]

    yield make
    for room in rooms:
        room.close()


def new_room(request):
    path = request.node.path
    found = re.match(r"test_(\d+)_(\d+)_", path.name)
    the_exercise = exercise(f"{found[1]}.{found[2]}")
    answer = os.environ.get("COURSE_ANSWER") or the_exercise.solution_file
    limit_s = os.environ.get("COURSE_LIMIT_S")
    if limit_s:
        the_exercise = dataclasses.replace(the_exercise, limit_s=float(limit_s))
    return Room(the_exercise, answer, path)
