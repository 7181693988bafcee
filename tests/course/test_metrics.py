"""What Prometheus and Grafana make of the reference's figures.

Not covered: a running Grafana; queries are parsed by Prometheus' own promtool, not evaluated.
"""

import asyncio
import json
import re
import shutil
import subprocess
from contextlib import aclosing

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from course import answers
from course.grading.kit.scripted_chat import ScriptedPiece
from course.manifest import ROOT

DASHBOARD = ROOT / "course" / "lessons" / "pages" / "grafana.json"


class Chat:
    async def chat(self, messages):
        yield ScriptedPiece("Hi", 20, 2)
        if messages == "fails":
            raise RuntimeError("the model fails")
        yield ScriptedPiece(" there", 20, 4)
        yield ScriptedPiece("", 20, 5, messages)


@pytest.fixture(scope="module")
def scrape():
    """The text that Prometheus is given after an answer of each outcome."""
    registry = CollectorRegistry()
    chat_model = answers.load("4.3", "MeasuredChat", solution=True)(Chat(), registry)

    async def talk():
        for messages in ("stop", "length", "fails", "left"):
            async with aclosing(chat_model.chat(messages)) as pieces:
                try:
                    async for _ in pieces:
                        if messages == "left":
                            break
                except RuntimeError:
                    pass

    asyncio.run(talk())
    return generate_latest(registry).decode()


@pytest.fixture
def promtool():
    """Runs promtool with text on its standard input; its completed process."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("PROMETHEUS NOT TESTED: no promtool found. Fix: apt-get install prometheus")

    def run(*arguments, **options):
        return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, **options)

    return run


def test_promtool_finds_nothing_in_the_scrape(scrape, promtool):
    checked = promtool("check", "metrics", input=scrape)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_promtool_would_find_something(scrape, promtool):
    assert promtool("check", "metrics", input=scrape.replace("_total", "_sum_of_all")).returncode == 3


def test_the_scrape_says_what_happened(scrape):
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
    }
    for outcome in ("stop", "length", "error", "cancelled"):
        assert values["llm_requests_total", outcome] == 1
    assert values["llm_completion_tokens_total",] == 5 + 5 + 2 + 2
    assert values["llm_requests_in_flight",] == 0
    assert values["llm_inter_token_latency_seconds_count",] == 2


def queries():
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_is_one_that_grafana_can_import():
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert board["title"] and board["schemaVersion"] and board["panels"]
    assert "datasource" in [variable["name"] for variable in board["templating"]["list"]]
    taken = set()
    for panel in board["panels"]:
        assert panel["title"] and panel["type"] and panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_dashboard_asks_for_metrics_that_there_are(scrape):
    there = {sample.name for family in text_string_to_metric_families(scrape) for sample in family.samples}
    asked = {name for query in queries() for name in re.findall(r"\bllm_\w+", query)}
    assert asked <= there
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in there if not name.endswith("_created")}
    assert {re.sub(r"_bucket$", "", name) for name in asked} == families, "each has its panel"


def test_promtool_parses_the_dashboards_queries(promtool, tmp_path):
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.json"  # which is YAML, too
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
