"""The `room` that the autograder's tests use, as a pytest plugin.

The runner says by GRADED which answer to which exercise it is; under plain pytest it is the reference
solution of the exercise whose tests run. COURSE_LIMIT_S replaces the exercises' own limits: raise it
on a machine that is very slow.
"""

import dataclasses
import os
import warnings

import pytest

from course.grading.elsewhere import Elsewhere
from course.grading.room import Room
from course.manifest import ROOT, exercises

GRADED = pytest.StashKey()
"""(the exercise, the answer's file) in pytest's `config.stash`."""
ELSEWHERE = pytest.StashKey()
"""There, too: (the base URL, its model's name or None) of a server that runs already, which is then graded instead."""


@pytest.fixture
def room(request):
    """A fresh room with the answer loaded."""
    with new_room(request) as room:
        room.load()
        yield room


@pytest.fixture(scope="module")
def _kept():
    rooms = []
    yield rooms
    for room in rooms:
        room.close()


@pytest.fixture
def shared_room(request, _kept):
    """A room that the file's tests share, as long as nothing in it has hung or ended. For tests that
    leave nothing behind which another one would notice: it costs less time than a fresh one."""
    if _kept and _kept[-1].spoiled:
        _kept.pop().close()
    if not _kept:
        _kept.append(new_room(request))
        _kept[-1].load()
    return _kept[-1]


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


@pytest.fixture
def not_tested(record_property):
    """Says what this machine lacks for a test. The verdict shows it, and no learner loses a point.

    Under CI=true it fails: there, everything is tested.
    """

    def not_tested(lack):
        said = f"NOT TESTED: {lack}"
        if os.environ.get("CI") == "true":
            pytest.fail(said, pytrace=False)
        record_property("note", said)
        warnings.warn(said, stacklevel=2)

    return not_tested


def new_room(request):
    """A room for the answer that is graded; nothing is loaded yet. Or, instead of it, a server that runs already."""
    if at := request.config.stash.get(ELSEWHERE, None):
        base_url, name = at
        if name and hasattr(request.module, "NAME"):
            request.module.NAME = name  # the tests ask for the model that this server has
        return Elsewhere(base_url)
    path = request.node.path
    the_exercise, answer = request.config.stash.get(GRADED, None) or _reference(path)
    limit_s = os.environ.get("COURSE_LIMIT_S")
    if limit_s:
        the_exercise = dataclasses.replace(the_exercise, limit_s=float(limit_s))
    return Room(the_exercise, answer, path)


def _reference(path):
    for the_exercise in exercises().values():
        if (ROOT / the_exercise.tests_file) == path.resolve():
            return the_exercise, the_exercise.solution_file
    raise LookupError(f"{path} is not an exercise's tests file in course/exercises.toml")
