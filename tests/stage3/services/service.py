"""A service as a program: python service.py ANSWER NOTES HOST PORT. It notes what happens, a line each.

When start_app returns, it registers and starts a second app.
"""

import sys
from pathlib import Path

from course import answers

_, answer_file, notes_file, host, port = sys.argv
answers.importable(solution=True)
answer = answers.module(Path(answer_file), "answer")

from fastapi import FastAPI  # noqa: E402
from four_actions import ConfigHandler, RequestHandler  # noqa: E402 - importable only now


def note(what):
    with open(notes_file, "a") as notes:
        notes.write(f"{what}\n")


class Config(ConfigHandler):
    def initialize(self):
        note("initialized")

    async def close(self):
        note("closed")


class Handler(RequestHandler):
    async def run(self, processed_input):
        return {"got": processed_input}


answer.HandlerFactory.register_handler("/ask", Config, Handler)

if __name__ == "__main__":
    app = answer.start_app(host=host, port=int(port))
    note(f"returned {'FastAPI' if isinstance(app, FastAPI) else type(app).__name__}")
    answer.HandlerFactory.register_handler("/ask", Config, Handler)
    answer.start_app(port=int(port))
