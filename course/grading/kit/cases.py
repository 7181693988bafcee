"""Cases that several exercises are tried with."""

import sys
import time

TEXTS = [
    "你好，世界！",
    "かなカナ",
    "한국어",
    "👍🏽",
    "cafe\u0301",
    "\n\n",
    "\r\n",
    "\r",
    "  leading blanks",
    "trailing blanks  ",
    "[DONE]",
    "data: {}",
    "data:",
    ": a comment?",
    "event: done\ndata: {}\n\n",
    '"quotes" and \\backslashes\\n',
    "\t\u2028\u0085\x0b",
    "\ufeff",
    "null",
    " ",
]
"""Pieces of an answer that must arrive as they are."""

NO_OBJECTS = {
    "": "an empty body",
    '["hi"]': "a JSON list",
    '"hi"': "a JSON string",
    "null": "null",
}
"""{a body that is not a JSON object: what it is}."""

WRONG_PROMPTS = {
    "{}": "a body without `prompt`",
    '{"text": "hi"}': "a body without `prompt`",
    '{"prompt": ""}': "an empty prompt",
    '{"prompt": null}': "a prompt that is null",
    '{"prompt": 5}': "a prompt that is a number",
    '{"prompt": ["hi"]}': "a prompt that is a list",
    '{"prompt": "hi", "max_new_tokens": 0}': "a max_new_tokens of 0",
    '{"prompt": "hi", "max_new_tokens": -1}': "a max_new_tokens of -1",
    '{"prompt": "hi", "max_new_tokens": 1.5}': "a max_new_tokens of 1.5",
    '{"prompt": "hi", "max_new_tokens": "x"}': 'a max_new_tokens of "x"',
    '{"prompt": "hi", "temperature": -0.1}': "a temperature of -0.1",
    '{"prompt": "hi", "temperature": "hot"}': 'a temperature of "hot"',
    '{"prompt": "hi", "temperature": [1]}': "a temperature that is a list",
}
"""{a body with a wrong prompt or option: what is wrong}."""

NOT_FINITE = ["NaN", "Infinity", "-Infinity", "1e999"]
"""Numbers that Python's json takes, and that no temperature can be."""


def note_sleeps(inside):
    """In the room: from now on `inside.notes["sleeps"]` has each `time.sleep` by which a line of the
    answer's blocks a server's event loop."""
    sleeps = inside.notes["sleeps"] = []
    sleep = time.sleep

    def noted_sleep(seconds):
        caller = sys._getframe(1)
        if inside.on_a_servers_loop() and caller.f_code.co_filename == str(inside.answer_file):
            sleeps.append(f"line {caller.f_lineno}: time.sleep({seconds:g})")
        sleep(seconds)

    time.sleep = noted_sleep
    return sleeps
