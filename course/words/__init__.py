"""The course's words in the reader's language: English, and Chinese where COURSE_LANG=zh.

The code is written in English. `words` looks a finished English text up in `zh.po`, a message or a template: there
"`{name}` is not a class" stands for every text of that form. What has no translation stays English. `fact` does
the same for what a test says it sent, expected and got. That has a context of its own: an answer's own words are
never taken for a finding.

    python -m course.words                collect the English texts of the code into zh.po
    python -m course.words --missing      those that have no Chinese yet, as JSON
    python -m course.words --fill FILE    put the pairs of a JSON file, {English: Chinese}, into zh.po
"""

import functools
import os
import re
from pathlib import Path

from course.words.phrases import PHRASES

CATALOG = Path(__file__).with_name("zh.po")
HOLE = re.compile(r"\{([a-z][a-z_0-9]*)\}")
HAN = re.compile("[\u4e00-\u9fff]")
NAME = re.compile("[A-Za-z0-9_`'\"()\\[\\]{}/]")
FACT = "fact"
"""The context in zh.po of what tests say that they sent, expected and got."""
NOTHING = {"nothing", "none"}
"""One word as a fact is data, if it is not one of these."""
LEAST = 3
"""So many letters of its own a template needs: with fewer it would stand for almost any text."""


def language() -> str:
    """ "zh" or "en": what COURSE_LANG says, else the locale."""
    for name in ("COURSE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if said := os.environ.get(name):
            return "zh" if said.lower().startswith("zh") else "en"
    return "en"


def words(text: str, **values) -> str:
    """The text in the reader's language. `values` are what its holes hold; a finished text needs none."""
    if text and language() == "zh":
        return _filled(translated(text), values) if values else translated(text)
    return HOLE.sub(lambda hole: str(values[hole[1]]), text) if values else text


def fact(text: str, events=False) -> str:
    """A fact of a verdict in the reader's language, if it is a text of a test's own: others are data, and stay.
    `events`: it may be a list of such texts."""
    if language() != "zh" or not (" " in text or text in NOTHING):
        return text
    if (message := message_of(text, FACT)) is None:
        return _one_by_one(text) if events else text
    english, held = message
    if len(HOLE.sub("", english).split()) == 1 and not all(each.isdigit() for each in held.values()):
        return text  # "3 steps" is a count; three words and "steps" may be an answer's own
    if events and english[0] == "'" and any(", '" in each or " s, " in each for each in held.values()):
        return _one_by_one(text)  # a hole took two events for one
    values = {hole: fact(each, events) for hole, each in held.items()}
    # what stands in a finding's hole may stand in a fact's
    findings = _catalog()[0]
    values |= {hole: findings[each] for hole, each in held.items() if " " in each and each in findings}
    return _filled(_catalog(FACT)[0][english], values)


def _one_by_one(text):
    """What happened, one event after another. Between two that are data, the comma may be data, too."""
    for stop, chinese in (("; ", "；"), (", ", "，")):
        events = text.split(stop)
        said = [fact(each, True) for each in events] if len(events) > 1 else events
        if said != events:
            data = [one == other for one, other in zip(said, events)]
            stops = ["", *(stop if one and other else chinese for one, other in zip(data, data[1:]))]
            return "".join(before + each for before, each in zip(stops, said))
    return text


def marked(text: str) -> str:
    """The English text as it is: it is collected here, and looked up where it is shown."""
    return text


@functools.lru_cache(maxsize=1000)
def translated(text: str) -> str:
    """The text in Chinese; as it is, where there is no translation of it."""
    # a finding to which ": why" was added
    for ending in _endings():
        if text.endswith(ending) and message_of(text[: -len(ending)]):
            return translated(text[: -len(ending)]) + _catalog()[0][ending]
    message = message_of(text)
    if message is None:
        bare = text.strip()
        return text.replace(bare, translated(bare)) if bare != text else text
    english, held = message
    # what a hole holds may be a phrase of the course's own; one word is a name
    values = {hole: translated(each) if " " in each or each in _phrases() else each for hole, each in held.items()}
    chinese = _catalog()[0][english]
    return _filled(chinese, values) if held else chinese


def _filled(chinese, values):
    """The template with its holes filled: a blank stands between Chinese and a name or a number, and nowhere else."""
    said, *rest = HOLE.split(chinese)
    for name, after in zip(rest[::2], rest[1::2]):
        value = str(values.get(name, f"{{{name}}}"))
        said = _beside(said, value[:1]) + value + _beside(after[::-1], value[-1:])[::-1]
    return said


def _beside(text, letter):
    """What stands before that letter."""
    if HAN.fullmatch(letter) and text[-1:] == " " and HAN.fullmatch(text[-2:-1]):
        return text[:-1]
    return text + " " if NAME.fullmatch(letter) and HAN.fullmatch(text[-1:]) else text


def message_of(text: str, context: str | None = None) -> tuple[str, dict[str, str]] | None:
    """The English text of zh.po that this one is, and what its holes hold; None if there is none with Chinese."""
    messages, templates = _catalog(context)
    if text in messages:
        return text, {}
    for english, pieces, holes in templates:
        if all(piece in text for piece in pieces) and (found := _pattern(pieces).fullmatch(text)):
            return english, dict(zip(holes, found.groups()))
    return None


@functools.cache
def _catalog(context=None):
    """({English: Chinese}, [(English, its pieces between the holes, names of the holes)], the most exact one first)."""
    messages = read(context) if context else read()
    templates = []
    for english in messages:
        parts = HOLE.split(english)
        if len(parts) > 1 and has_words(english):
            templates.append((english, tuple(parts[::2]), parts[1::2]))
    templates.sort(key=lambda template: -sum(map(len, template[1])))
    return messages, templates


@functools.cache
def _phrases():
    return {phrase for phrases in PHRASES.values() for phrase in phrases}


@functools.cache
def _endings():
    """What is only ever added to another text."""
    return [english for english in _catalog()[0] if english[:2] in (": ", ", ", ". ")]


@functools.cache
def _pattern(pieces):
    return re.compile("(.*?)".join(map(re.escape, pieces)), re.DOTALL)


def has_words(template: str) -> bool:
    return len(re.findall("[A-Za-z]", HOLE.sub("", template))) >= LEAST


def read(context: str | None = None) -> dict[str, str]:
    """{English: Chinese} of what is translated, in that context."""
    return {each.id: each.string for each in catalog() if each.id and each.string and each.context == context}


def catalog():
    """zh.po as Babel's Catalog."""
    from babel.messages.pofile import read_po

    with CATALOG.open("rb") as file:
        return read_po(file, locale="zh_CN")
