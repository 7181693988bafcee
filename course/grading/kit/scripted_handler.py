"""A handler of scripted behaviour, for answers that are servers around one.

In the room, a scene puts it where 2.1's ModelHandler would be:

    def app(answer, inside, **script):
        return answer.create_app(ScriptedHandler(inside, **script))

In the test, `Model(room)` looks at it and steers it: see script.py. An answer's key is its prompt.
"""

from course.grading.kit.script import Script, Steps
from course.grading.mistakes import require


class ScriptedHandler:
    """Answers each prompt piece by piece, one piece a step. The arguments are those of Script."""

    def __init__(self, inside, answers=None, held=(), fails=None):
        self._script = Script(inside, answers, held, fails)

    def generate(self, prompt, *, stream=False, max_new_tokens=128, temperature=0.0):
        asked = {"prompt": prompt, "stream": stream, "max_new_tokens": max_new_tokens}
        key = prompt if isinstance(prompt, str) else ""
        return self._script.read(self._script.begin(key, **asked, temperature=temperature))


class Remembered(ScriptedHandler):
    """What it returns is never collected as garbage: only aclose and cancellation end an answer."""

    def __init__(self, *args, **script):
        super().__init__(*args, **script)
        self.remembered = []

    def generate(self, *args, **kwargs):
        self.remembered.append(super().generate(*args, **kwargs))
        return self.remembered[-1]


class Model(Steps):
    """The scripted handler's model as a test sees it, from outside."""

    def require_asked(self, sent, number, max_new_tokens, temperature):
        """Requires that the prompt `sent`, the `number`th, has asked the handler once, with
        stream=True, its own text and these two values."""
        talks = self.talks()
        require(
            len(talks) == number,
            "the handler is not called exactly once for each prompt",
            sent=sent,
            got=f"{len(talks)} calls to generate for {number} prompts",
        )
        talk = talks[-1]
        require(
            talk["stream"] is True,
            "generate is not called with stream=True: without it, the whole answer is one piece at the end",
            sent=sent,
            expected="generate(prompt, stream=True, ...)",
            got=f"stream={talk['stream']}",
        )
        for name, expected in (
            ("prompt", sent["prompt"]),
            ("max_new_tokens", max_new_tokens),
            ("temperature", temperature),
        ):
            left_out = "" if name in sent else ", the default when the field is left out"
            require(
                talk[name] == expected and type(talk[name]) is not bool,
                f"the handler is called with the wrong `{name}`",
                sent=sent,
                expected=f"{name}={expected!r}{left_out}",
                got=f"{name}={talk[name]!r}",
            )
