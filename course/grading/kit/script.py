"""The steps of a scripted part of an answer's surroundings: a handler, a chat model, a slot model.

In the room the part makes each of its answers by a Script, which counts its steps and holds them:

    script = Script(inside, answers={"hi": ["one ", "two "]}, held=["hi"])
    talk = script.begin("hi", max_new_tokens=5)  # what the test sees of this answer
    script.read(talk)                            # its pieces, as an async generator

In the test, Steps looks at it and steers it:

    steps = Steps(room)
    steps.let("hi", 2)      # two more steps of the held answer to "hi"
    steps.talk("hi")        # how it was asked, its steps so far, whether its reader has left

Its model is the kind that works on whether or not its pieces are read, until the reader leaves: by
`aclose()`, or by being cancelled while it waits for a piece.
"""

import asyncio
import builtins
import contextlib
import threading
import time
import weakref

from course.grading.kit.http import facts
from course.grading.mistakes import fail


def let(answer, inside, key, steps):
    """A scene: see Script.let."""
    inside.kept["script"].let(key, steps)


class Script:
    """Answers by key (a prompt, say), each piece a step and the end one more. The room's latest one is
    `inside.kept["script"]`."""

    def __init__(self, inside, answers=None, held=(), fails=None):
        """Args:
        answers: {key: pieces}; the pieces for any other key are "re: " and the key.
        held: the keys whose answers make no step that `let` has not allowed.
        fails: {key: [how many pieces come first, the error's message]}, and as a third the
            error's class if it is to be another than RuntimeError: the name of a built-in one,
            or of an Exception of the model's own.
        """
        self._answers, self._fails = answers or {}, fails or {}
        self._allowed = dict.fromkeys(held, 0)
        self._changed = threading.Condition()
        self._plain = inside.plain
        self.readers = weakref.WeakSet()
        """The tasks that have asked for pieces, as long as someone else keeps them."""
        self._talks = inside.notes["talks"] = []
        inside.kept["script"] = self

    def begin(self, key, **asked):
        """A new answer to `key`. Returns its talk, a dict that the test sees: what was `asked`, and

        steps: made by the model; asked: how often a piece was; left: nobody reads it any more;
        finished: its last step was made.
        """
        talk = {"key": key, **{name: self._plain(value) for name, value in asked.items()}}
        talk.update(steps=0, asked=0, left=False, finished=False)
        self._talks.append(talk)
        return talk

    def let(self, key, steps):
        """Lets the held answers to `key` make that many more steps; all, if None."""
        with self._changed:
            self._allowed[key] = None if steps is None else self._allowed[key] + steps
            self._changed.notify_all()

    def step(self, talk):
        """Makes one step, which waits in its thread until it is allowed. False if the reader has left.

        Raises:
            Exception: the one that `fails` has for this step.
        """
        key = talk["key"]

        def allowed():
            most = self._allowed.get(key)
            return most is None or talk["steps"] < most

        with self._changed:
            self._changed.wait_for(lambda: talk["left"] or allowed())
            if talk["left"]:
                return False
        talk["steps"] += 1
        pieces_before, message, *kind = self._fails.get(key, [None, ""])
        if talk["steps"] - 1 == pieces_before:
            raise self.error(message, *kind)
        return True

    @staticmethod
    def error(message, name="RuntimeError"):
        """An error of the built-in class of that name, or of an Exception of the model's own."""
        return (getattr(builtins, name, None) or type(name, (Exception,), {}))(message)

    def leave(self, talk):
        """Its reader has left: no further step is made."""
        with self._changed:
            talk["left"] = True
            self._changed.notify_all()

    async def read(self, talk, last=None):
        """The answer's pieces; its model works in a thread. `last()`, if given, is handed out with the
        last step."""
        queue, loop = asyncio.Queue(), asyncio.get_running_loop()

        def put(*event):
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, event)

        threading.Thread(target=self._work, args=(talk, put, last), daemon=True).start()
        try:
            while True:
                talk["asked"] += 1
                self.readers.add(asyncio.current_task())
                kind, *piece = await queue.get()
                if kind == "end":
                    return
                if kind == "error":
                    raise piece[0]
                yield piece[0]
        finally:
            self.leave(talk)

    def _work(self, talk, put, last):
        try:
            for piece in self._answers.get(talk["key"], ["re: ", talk["key"]]):
                if not self.step(talk):
                    return
                put("piece", piece)
            if not self.step(talk):
                return
        except Exception as error:  # noqa: BLE001 - the scripted one, of whatever class
            put("error", error)
            return
        talk["finished"] = True
        if last:
            put("piece", last())
        put("end")


class Steps:
    """A Script as a test sees it, from outside."""

    part = "the handler"
    """What the answer asks for pieces, in a verdict's words."""

    def __init__(self, room):
        self._room = room

    def talks(self):
        """Everything that it was asked, in order: see `Script.begin`."""
        return self._room.notes()["talks"]

    def talk(self, key):
        """The latest answer to that key; None if it was never asked."""
        found = [talk for talk in self.talks() if talk["key"] == key]
        return found[-1] if found else None

    def steps(self):
        """How many steps it has made in all."""
        return sum(talk["steps"] for talk in self.talks())

    def let(self, key, steps=1):
        """Allows the held answers to that key that many more steps; all, if None."""
        self._room.play(let, key=key, steps=steps)

    def asked(self, key, pieces=1, limit_s=None):
        """Waits until that many pieces of the answer were asked for; whether they were."""
        return self._until(lambda talk: talk["asked"] >= pieces, key, limit_s)

    def begun(self, stream, key):
        """Waits until the answer that `stream` (see sse.py) reads is asked for its first piece.

        Raises:
            Mistake: the server answers without asking.
            Hung: it does not answer either.
        """
        mistake = f"{stream.what} never asks {self.part} for a piece"
        until = time.monotonic() + self._room.limit_s
        while not self.asked(key, limit_s=0.05):
            if stream.ended(0.001):
                fail(mistake, **facts(self._room, stream.reply()))
            if time.monotonic() > until:
                raise self._room.hung(mistake)

    def steps_after_leaving(self, key, most):
        """Lets an abandoned answer go on, a step at a time, as long as it does and `most` times at
        most. Returns how many steps it made.

        The next step waits until the piece of the one before has been taken, so a server that looks
        for its client between two pieces has had the chance to.
        """
        before = self.talk(key)["steps"]
        for _ in range(most):
            talk = self.talk(key)
            if talk["left"]:
                break
            self.let(key)
            taken = talk["asked"] + 1
            if not self._until(lambda now, to=taken: now["left"] or now["asked"] >= to, key, 0.3):
                # nobody reads any more and nobody has told the model: it works on to its end
                self.let(key, None)
                self._until(lambda now: now["left"] or now["finished"], key, 0.3)
                break
            self._room.turns()
        return self.talk(key)["steps"] - before

    def _until(self, holds, key, limit_s):
        end = time.monotonic() + (limit_s or self._room.limit_s)
        while True:
            talk = self.talk(key)
            if talk and holds(talk):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
