"""A handler of scripted behaviour, for answers that are servers around one.

In the room, a scene puts it where 2.1's ModelHandler would be:

    def app(answer, room, **script):
        return answer.create_app(ScriptedHandler(room, **script))

In the test:

    model = Model(room)          # a test file that uses it imports `let` and `ScriptedHandler` too
    model.let("hi", steps=2)     # two more steps of the held answer to "hi"
    model.talk("hi")             # how it was asked, its steps so far, whether its reader has left

Its model is the kind that works on whether or not its pieces are read, until the reader leaves: by
`aclose()`, or by being cancelled while it waits for a piece, as in 2.1.
"""

import asyncio
import builtins
import contextlib
import threading
import time
import weakref

from course.grading.http import facts
from course.grading.mistakes import fail, require


def let(answer, room, prompt, steps):
    """A scene: lets the held answers to `prompt` make so many more steps; all, if None."""
    room.handler.let(prompt, steps)


class ScriptedHandler:
    """Answers each prompt piece by piece, one piece a step."""

    def __init__(self, room, answers=None, held=(), fails=None):
        """Args:
            answers: {prompt: pieces}; the pieces for any other prompt are "re: " and the prompt.
            held: the prompts whose answers make no step that `let` has not allowed.
            fails: {prompt: [how many pieces come first, the error's message]}, and as a third the
                error's class if it is to be another than RuntimeError: the name of a built-in one,
                or of an Exception of the model's own.
        """
        self._answers, self._fails = answers or {}, fails or {}
        self._allowed = dict.fromkeys(held, 0)
        self._changed = threading.Condition()
        self._room = room
        self.readers = weakref.WeakSet()
        """The tasks that have asked for pieces, as long as someone else keeps them."""
        self._talks = room.notes["talks"] = []
        room.handler = self

    def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        asked_for = [prompt, stream, max_new_tokens, temperature]
        names = ["prompt", "stream", "max_new_tokens", "temperature"]
        talk = dict(zip(names, map(self._room.plain, asked_for), strict=True))
        # steps: made by the model; asked: how often a piece was; left: nobody reads it any more
        talk.update(steps=0, asked=0, left=False, finished=False)
        self._talks.append(talk)
        return self._pieces(prompt, talk)

    def let(self, prompt, steps):
        with self._changed:
            self._allowed[prompt] = None if steps is None else self._allowed[prompt] + steps
            self._changed.notify_all()

    async def _pieces(self, prompt, talk):
        queue, loop = asyncio.Queue(), asyncio.get_running_loop()

        def put(piece):
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        threading.Thread(target=self._work, args=(prompt, talk, put), daemon=True).start()
        try:
            while True:
                talk["asked"] += 1
                self.readers.add(asyncio.current_task())
                piece = await queue.get()
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            with self._changed:
                talk["left"] = True
                self._changed.notify_all()

    def _work(self, prompt, talk, put):
        key = prompt if isinstance(prompt, str) else ""
        pieces = self._answers.get(key, ["re: ", key])
        pieces_before, message, error, *_ = [*self._fails.get(key, [None, ""]), "RuntimeError"]
        for number in range(len(pieces) + 1):
            if not self._may_step(key, talk):
                return
            talk["steps"] += 1
            if number == pieces_before:
                kind = getattr(builtins, error, None) or type(error, (Exception,), {})
                put(kind(message))
                return
            if number < len(pieces):
                put(pieces[number])
        talk["finished"] = True
        put(None)

    def _may_step(self, prompt, talk):
        def allowed():
            most = self._allowed.get(prompt)
            return most is None or talk["steps"] < most

        with self._changed:
            self._changed.wait_for(lambda: talk["left"] or allowed())
            return not talk["left"]


class Model:
    """The scripted handler's model as a test sees it, from outside."""

    def __init__(self, room):
        self._room = room

    def talks(self):
        """Everything that it was asked, in order: see `generate` above."""
        return self._room.notes()["talks"]

    def talk(self, prompt):
        """The latest answer to that prompt; None if it was never asked."""
        found = [talk for talk in self.talks() if talk["prompt"] == prompt]
        return found[-1] if found else None

    def steps(self):
        """How many steps it has made in all."""
        return sum(talk["steps"] for talk in self.talks())

    def require_asked(self, sent, number, max_new_tokens, temperature):
        """Requires that the prompt `sent`, the `number`th, has asked the handler once, with
        stream=True, its own text and these two values."""
        talks = self.talks()
        require(
            len(talks) == number,
            "each prompt asks the handler once",
            sent=sent,
            got=f"{len(talks)} calls of generate for {number} prompts",
        )
        talk = talks[-1]
        require(
            talk["stream"] is True,
            "generate is to be called with stream=True: otherwise it gives one piece, at the end",
            sent=sent,
            expected="generate(prompt, stream=True, ...)",
            got=f"stream={talk['stream']}",
        )
        for name, expected in (
            ("prompt", sent["prompt"]),
            ("max_new_tokens", max_new_tokens),
            ("temperature", temperature),
        ):
            left_out = "" if name in sent else ", which is the value if it is left out"
            require(
                talk[name] == expected and type(talk[name]) is not bool,
                f"`{name}` does not reach the handler as it was asked for",
                sent=sent,
                expected=f"{name}={expected!r}{left_out}",
                got=f"{name}={talk[name]!r}",
            )

    def let(self, prompt, steps=1):
        """Allows the held answers to that prompt so many more steps; all, if None."""
        self._room.play(let, prompt=prompt, steps=steps)

    def asked(self, prompt, pieces=1, limit_s=None):
        """Waits until that many pieces of the answer were asked for; whether they were."""
        return self._until(lambda talk: talk["asked"] >= pieces, prompt, limit_s)

    def begun(self, stream, prompt):
        """Waits until the answer that `stream` (see sse.py) reads is asked for its first piece.

        Raises:
            Mistake: the server answers without asking.
            Hung: it does not answer either.
        """
        mistake = f"{stream.what} does not ask the handler for a piece"
        until = time.monotonic() + self._room.limit_s
        while not self.asked(prompt, limit_s=0.05):
            if stream.ended(0.001):
                fail(mistake, **facts(self._room, stream.reply()))
            if time.monotonic() > until:
                raise self._room.hung(mistake)

    def steps_after_leaving(self, prompt, most):
        """Lets an abandoned answer go on, a step at a time, as long as it does and `most` times at
        most. Returns how many steps it made.

        The next step waits until the piece of the one before has been taken, so a server that looks
        for its client between two pieces has had the chance to.
        """
        before = self.talk(prompt)["steps"]
        for _ in range(most):
            talk = self.talk(prompt)
            if talk["left"]:
                break
            self.let(prompt)
            taken = talk["asked"] + 1
            if not self._until(lambda now: now["left"] or now["asked"] >= taken, prompt, 0.3):
                # nobody reads any more and nobody has told the model: it works on to its end
                self.let(prompt, None)
                self._until(lambda now: now["left"] or now["finished"], prompt, 0.3)
                break
            self._room.turns()
        return self.talk(prompt)["steps"] - before

    def _until(self, holds, prompt, limit_s):
        end = time.monotonic() + (limit_s or self._room.limit_s)
        while True:
            talk = self.talk(prompt)
            if talk and holds(talk):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
