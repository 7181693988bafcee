"""Brings `zh.po` up to date with the code, lists what it lacks, and fills it: see `course.words`."""

import argparse
import datetime
import json
import sys
from collections import Counter
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import write_po

from course import words
from course.words.collect import collected, collected_facts

WHEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""In the file's head, so that it changes only when its texts do."""


def brought_up_to_date(chinese: dict[str, str], facts: dict[str, str] | None = None) -> Catalog:
    """All texts of the code, with the translations that there are."""
    head = "The course's words in Chinese. See course/words/__init__.py."
    made = Catalog("zh_CN", header_comment=f"# {head}", creation_date=WHEN, revision_date=WHEN, fuzzy=False)
    for english, files in collected().items():
        made.add(english, chinese.get(english, ""), [(file, None) for file in files])
    facts = {**chinese, **(facts or {})}
    for english, files in collected_facts().items():
        made.add(english, facts.get(english, ""), [(file, None) for file in files], context=words.FACT)
    return made


def write(catalog: Catalog) -> None:
    with words.CATALOG.open("wb") as file:
        write_po(file, catalog, width=0, include_lineno=False, no_location=False)


def wrong_holes(english: str, chinese: str) -> bool:
    """Whether a translation has not the holes of its text, each as often."""
    return Counter(words.HOLE.findall(english)) != Counter(words.HOLE.findall(chinese))


def missing(start: str = "") -> dict[str, str]:
    """{English: ""} of what has no translation, in files whose name begins so."""
    return {
        message.id: ""
        for message in words.catalog()
        if message.id and not message.string and any(file.startswith(start) for file, _ in message.locations)
    }


def fill(pairs: dict[str, str]) -> list[str]:
    """Puts translations into zh.po; returns what is wrong with those that are left out, a line each."""
    catalog = words.catalog()
    problems = []
    for english, chinese in pairs.items():
        there = [each for each in (catalog.get(english), catalog.get(english, words.FACT)) if each is not None]
        if not there:
            problems.append(f"not in zh.po: {english}")
        elif wrong_holes(english, chinese):
            problems.append(f"other holes: {english} -> {chinese}")
        elif chinese:
            for message in there:
                message.string = chinese
    write(catalog)
    return problems


def main():
    parser = argparse.ArgumentParser(prog="python -m course.words", description=__doc__)
    parser.add_argument("--missing", nargs="?", const="", metavar="PATH", help="list what has no Chinese, as JSON")
    parser.add_argument("--fill", type=Path, metavar="FILE", help="a JSON file of {English: Chinese}")
    asked = parser.parse_args()
    if asked.missing is not None:
        print(json.dumps(missing(asked.missing), ensure_ascii=False, indent=1))
    elif asked.fill:
        problems = fill(json.loads(asked.fill.read_text("utf-8")))
        print("\n".join(problems), end="\n" * bool(problems), file=sys.stderr)
        sys.exit(1 if problems else 0)
    else:
        there = words.CATALOG.exists()
        write(brought_up_to_date(words.read(), words.read(words.FACT)) if there else brought_up_to_date({}))
    print(f"{len(missing())} of {len(words.catalog())} texts have no Chinese.", file=sys.stderr)


if __name__ == "__main__":
    main()
