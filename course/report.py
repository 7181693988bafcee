"""Scores for teachers: the verdicts as json, junit (XML), gradescope (results.json) or csv."""

import csv
import io
import json
from xml.etree import ElementTree

from course.grading import Verdict


def _json(verdicts: list[Verdict]) -> str:
    data = {
        "score": sum(verdict.score for verdict in verdicts),
        "max_score": sum(verdict.max_score for verdict in verdicts),
        "exercises": [verdict.as_json() for verdict in verdicts],
    }
    return json.dumps(data, ensure_ascii=False, indent=2)


def _junit(verdicts):
    root = ElementTree.Element("testsuites")
    for verdict in verdicts:
        counts = [test.status for test in verdict.tests]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"{verdict.exercise} {verdict.title}",
            tests=str(len(counts)),
            failures=str(counts.count("failed") + counts.count("timeout")),
            errors=str(counts.count("not_run") if verdict.counted else 0),
            skipped=str(0 if verdict.counted else len(counts)),
            time=f"{verdict.duration_s:.3f}",
        )
        for test in verdict.tests:
            case = ElementTree.SubElement(suite, "testcase", classname=verdict.tests_file, name=test.id)
            if not verdict.counted:
                ElementTree.SubElement(case, "skipped", message=test.message)
            elif test.status != "passed":
                # not run is an error, never a skip: a skipped test reads as green in most tools
                kind = "error" if test.status == "not_run" else "failure"
                first = test.message.splitlines()[0] if test.message else test.status
                ElementTree.SubElement(case, kind, message=first).text = test.message
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _gradescope(verdicts):
    tests = [
        {
            "number": verdict.exercise,
            "name": test.title,
            "score": test.score,
            "max_score": test.max_score,
            # a test without a status is neither green nor red
            **({"status": "passed" if test.status == "passed" else "failed"} if verdict.counted else {}),
            "output": test.message,
        }
        for verdict in verdicts
        for test in verdict.tests
    ]
    return json.dumps({"tests": tests}, ensure_ascii=False, indent=2)


def _csv(verdicts):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["exercise", "title", "passed", "score", "max_score", "first_mistake"])
    for verdict in verdicts:
        wrong = verdict.first_wrong
        mistake = wrong.message.splitlines()[0] if wrong and wrong.message else ""
        passed = verdict.passed if verdict.counted else "not counted"
        row = [verdict.exercise, verdict.title, passed, verdict.score, verdict.max_score]
        writer.writerow([*row, mistake])
    return out.getvalue()


WRITERS = {"json": _json, "junit": _junit, "gradescope": _gradescope, "csv": _csv}
"""{format: function of a list of verdicts, which returns the report's text}."""
