"""What an audit found, for people and for machines."""

import json
from xml.etree import ElementTree

from rich.text import Text

from course.audit import DOES_NOT_APPLY, FAILED, PASSED
from course.words import words

STYLES = {PASSED: "green", FAILED: "bold red", DOES_NOT_APPLY: "yellow"}


def lines(result):
    """A result for the terminal: a list of rich Texts."""
    found = [
        Text.assemble((f"{words(result.status):<15}", STYLES[result.status]), f"{result.id}: {words(result.title)}")
    ]
    facts = [("", result.got)]
    if result.status == FAILED:
        facts = [(words("sent"), result.sent), (words("got"), result.got), (words("why"), words(result.why))]
    found += [Text(f"{'':<15}{f'{name:<6}' if name else ''}{fact}") for name, fact in facts if fact]
    return found


def summary(results):
    """One line with the counts, and one with the checks that failed, if any."""
    counts = {status: sum(each.status == status for each in results) for status in STYLES}
    said = words(
        "{counts}. {requests} requests, {seconds} s.",
        counts=", ".join(f"{words(status)}: {count}" for status, count in counts.items()),
        requests=sum(each.requests for each in results),
        seconds=f"{sum(each.seconds for each in results):.0f}",
    )
    failed = ", ".join(each.id for each in results if each.status == FAILED)
    return said + ("\n" + words("Failed: {checks}", checks=failed) if failed else "")


def as_json(url, model, results):
    data = {"url": url, "model": model, "passed": not any(each.status == FAILED for each in results)}
    return json.dumps(data | {"checks": [each.as_json() for each in results]}, ensure_ascii=False, indent=2)


def as_junit(url, results):
    counts = [each.status for each in results]
    suite = ElementTree.Element(
        "testsuite",
        name=f"course audit {url}",
        tests=str(len(results)),
        failures=str(counts.count(FAILED)),
        skipped=str(counts.count(DOES_NOT_APPLY)),
        time=f"{sum(each.seconds for each in results):.3f}",
    )
    for each in results:
        case = ElementTree.SubElement(suite, "testcase", classname="audit", name=each.id, time=f"{each.seconds:.3f}")
        if each.status == FAILED:
            failure = ElementTree.SubElement(case, "failure", message=each.got)
            failure.text = f"{each.title}\nsent  {each.sent}\ngot   {each.got}\nwhy   {each.why}"
        elif each.status == DOES_NOT_APPLY:
            ElementTree.SubElement(case, "skipped", message=each.got)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
