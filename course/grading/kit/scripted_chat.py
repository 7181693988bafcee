"""A chat model of scripted behaviour, for answers that are servers around one.

In the room, a scene puts it where 3.6's ChatModel would be:

    def app(answer, inside, **script):
        return answer.create_app(lambda: ScriptedChat(inside, **script))

In the test, `Chat(room)` looks at it and steers it: see script.py. An answer's key is the content of
the conversation's last message.
"""

from contextlib import aclosing
from dataclasses import dataclass

from course.grading.kit.script import Script, Steps


@dataclass(frozen=True, slots=True)
class ScriptedPiece:
    """An object with the four attributes of a Piece, and of no class that the answer knows."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


class ScriptedChat:
    """Answers each conversation piece by piece, one piece a step.

    Its counts are those of a model whose steps choose several tokens each (see `counts`), and its pieces
    are async generators that it keeps, so that none is closed because nobody remembers it.
    """

    def __init__(self, inside, answers=None, held=(), fails=None, refuses=None, lasts=None):
        """Args:
        answers, held, fails: as Script takes them. A text "" is a step that gives no piece.
        refuses: {key: [the error's message, the name of a built-in error]}: the call of `chat` itself
            raises it.
        lasts: {key: [text, finish_reason]} of the last piece, which is ["", "stop"] if left out.
        """
        self._script = Script(inside, answers, held, fails)
        self._refuses, self._lasts = refuses or {}, lasts or {}
        self._kept = []

    def chat(self, messages, *, max_tokens=None, temperature=1.0, top_p=1.0, seed=None, stop=()):
        """As 3.6's `chat`."""
        key = key_of(messages)
        asked = {"messages": messages, "max_tokens": max_tokens, "temperature": temperature}
        talk = self._script.begin(key, **asked, top_p=top_p, seed=seed, stop=stop)
        if key in self._refuses:
            message, name = self._refuses[key]
            raise self._script.error(message, name)
        pieces = self._pieces(key, talk)
        self._kept.append(pieces)
        return pieces

    async def _pieces(self, key, talk):
        text, reason = self._lasts.get(key, ["", "stop"])

        def last():
            return ScriptedPiece(text, *counts(key, talk["steps"]), reason)

        number = 0
        async with aclosing(self._script.read(talk, last)) as pieces:
            async for piece in pieces:
                number += 1
                if isinstance(piece, str) and piece:
                    yield ScriptedPiece(piece, *counts(key, number))
                elif piece:
                    yield piece


def key_of(messages):
    """The content of the last message; "" where that is not to be had."""
    try:
        last = messages[-1]
    except (TypeError, LookupError):
        return ""
    content = last.get("content") if isinstance(last, dict) else getattr(last, "content", None)
    return content if isinstance(content, str) else ""


def counts(key, steps):
    """(prompt_tokens, completion_tokens) of the answer to `key` after so many steps."""
    return 20 + len(key), 3 * steps + 1


class Chat(Steps):
    """The scripted chat model as a test sees it, from outside."""

    part = "the chat model"
