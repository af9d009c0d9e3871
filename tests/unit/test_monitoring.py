"""What Prometheus and Grafana are given: well formed, tested, and about metrics that there are, with their labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ai_worker.config import Settings
from ai_worker.counts import Kind, Metric, Source
from tests.promtool import Promtool
from tests.unit.test_docs import anchors

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
]
TESTS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"

# Name -> type and labels. `job` and `instance` are Prometheus's own, and on every series.
METRICS: dict[str, tuple[str, set[str]]] = {each.full_name: (each.kind.name.lower(), set(each.labels)) for each in Metric}
# Prometheus's own, and those of its client library.
FOREIGN: dict[str, tuple[str, set[str]]] = {"up": (GAUGE, set()), "process_resident_memory_bytes": (GAUGE, set())}
OF_TARGET = {"job", "instance"}

_WORDS = {"by", "on", "and", "or", "unless", "without", "sum", "max", "min", "rate", "increase", "absent", "histogram_quantile"}


class Selector(NamedTuple):
    """A metric as a query names it: its labels, its range, and the functions around it, the inmost last."""

    name: str
    labels: set[str]
    is_ranged: bool
    functions: tuple[str, ...]
    grouped_by: set[str]  # labels that the aggregations around it keep, or operators match on


def selectors(query: str) -> Iterator[Selector]:
    """All of a query. Enough of PromQL for the queries of this repository; what it cannot read, it takes for a metric."""
    open_functions: list[tuple[str, set[str]]] = []
    pending = "", set[str]()
    pattern = re.compile(
        r"(?P<grouping>\b(?:by|on)\s*\((?P<by>[^)]*)\))|(?P<word>[a-zA-Z_]\w*)(?P<labels>\{[^}]*\})?(?P<range>\[[^\]]+\])?"
        r"|(?P<open>\()|(?P<close>\))"
    )
    for match in pattern.finditer(query):
        if match["grouping"]:
            pending = pending[0], {label.strip() for label in match["by"].split(",")}
        elif match["open"]:
            open_functions.append(pending)
            pending = "", set()
        elif match["close"]:
            open_functions.pop()
            pending = "", set()
        elif (word := match["word"]) in _WORDS:
            pending = word, set()
        else:
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match["labels"] or ""))
            grouped = set[str]().union(*(by for _, by in open_functions))
            yield Selector(word, labels, bool(match["range"]), tuple(name for name, _ in open_functions if name), grouped)


def complaints(query: str) -> list[str]:
    """What is wrong with a query: metrics that there are not, labels that they do not have, functions that do not fit them."""
    found: list[str] = []
    known = METRICS | FOREIGN
    for each in selectors(query):
        base = re.sub(r"_(?:bucket|sum|count)$", "", each.name)
        name = base if known.get(base, ("", set()))[0] == HISTOGRAM else each.name
        if name not in known or (known[name][0] == HISTOGRAM and each.name == base):
            found.append(f"there is no metric {each.name}")
            continue
        kind, labels = known[name]
        is_bucket = each.name.endswith("_bucket") and kind == HISTOGRAM
        if strange := (each.labels | each.grouped_by) - labels - OF_TARGET - ({"le"} if is_bucket else set()):
            found.append(f"{each.name} has no label {', '.join(sorted(strange))}")
        is_rate = bool({"rate", "increase"} & set(each.functions[-1:]))
        if is_rate and kind == GAUGE:
            found.append(f"no rate of the gauge {each.name}")
        elif is_rate != each.is_ranged or (not is_rate and kind != GAUGE):
            found.append(f"{each.name} is a {kind}, whose rate is to be taken, over a range")
        if ("histogram_quantile" in each.functions) != is_bucket:
            found.append(f"histogram_quantile goes with buckets of a histogram, not {each.name}")
        elif is_bucket and each.grouped_by and "le" not in each.grouped_by:
            found.append(f"without `le` there are no quantiles of {each.name}")
    return found


def queries() -> dict[str, str]:
    """All that is asked, by where it stands."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in RULES}
    for panel in PANELS:
        for target in panel.get("targets", ()):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
            found[f"variable {variable['name']}"] = f"max by ({label}) ({metric})"
    return found


QUERIES = queries()


@pytest.mark.parametrize("where", QUERIES)
def test_queries_name_metrics_that_there_are_with_their_labels(where: str) -> None:
    query = QUERIES[where]
    assert list(selectors(query))
    found = complaints(query)
    if where.startswith("variable"):  # asks for a label's values, whatever the metric's type
        found = [each for each in found if "label" in each or "no metric" in each]
    assert not found


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("sum(ai_worker_jobs)", "no metric"),
        ("max by (queue) (ai_worker_in_flight)", "no label queue"),
        ('ai_worker_items{model="a"}', "no label model"),
        ("sum(ai_worker_claims_total)", "whose rate is to be taken"),
        ("rate(ai_worker_workers[5m])", "no rate of the gauge"),
        ("histogram_quantile(0.9, max by (le) (rate(ai_worker_claims_total[5m])))", "buckets of a histogram"),
        ("histogram_quantile(0.9, sum by (job) (rate(ai_worker_claim_duration_seconds_bucket[5m])))", "without `le`"),
        ("rate(ai_worker_claim_duration_seconds[5m])", "no metric"),
    ],
)
def test_what_is_wrong_with_a_query_is_seen(query: str, complaint: str) -> None:
    assert any(complaint in each for each in complaints(query))


def test_alert_rules_are_well_formed_and_do_what_their_tests_say(promtool: Promtool) -> None:
    promtool.check_rules(MONITORING / "alerts.yml")
    promtool.test_rules(MONITORING / "alerts_test.yml")
    promtool.check_config(MONITORING / "prometheus.yml")


def test_the_example_for_prometheus_asks_where_a_web_process_listens_and_calls_it_as_alerts_do() -> None:
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    named = set(re.findall(r'job=~?"([^"]+)"', " ".join(rule["expr"] for rule in RULES)))
    assert jobs.keys() == {job for each in named for job in each.split("|")}
    (target,) = jobs["ai-worker"]["static_configs"][0]["targets"]
    assert target == f"127.0.0.1:{Settings.model_fields['web_port'].default}"
    assert config["rule_files"] == ["alerts.yml"]
    (kept,) = (each["regex"] for each in jobs["ai-worker-process"]["metric_relabel_configs"])
    of_processes = {each.name for query in QUERIES.values() if "$process_job" in query for each in selectors(query)}
    assert of_processes >= {metric.full_name for metric in Metric if metric.source is Source.PROCESS}
    assert all(re.fullmatch(kept, name) for name in of_processes)
    # The rules on counters keep `job`: these must come from one job alone.
    assert not any(re.fullmatch(kept, metric.full_name) for metric in Metric if metric.kind is not Kind.GAUGE)


def test_every_alert_is_seen_to_fire_and_seen_not_to() -> None:
    outcomes: dict[str, set[bool]] = {}
    for test in TESTS:
        for each in test["alert_rule_test"]:
            outcomes.setdefault(each["alertname"], set()).add(bool(each["exp_alerts"]))
    assert outcomes == {rule["alert"]: {True, False} for rule in RULES}


def test_alerts_are_tried_with_series_as_they_are() -> None:
    for series in {each["series"] for test in TESTS for each in test["input_series"]}:
        (found,) = selectors(series)
        name = found.name.removesuffix("_bucket")
        expected = (METRICS | FOREIGN)[name][1] | OF_TARGET | ({"le"} if name != found.name else set())
        assert found.labels == expected, series


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alerts_have_what_a_person_needs(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"AiWorker([A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / page)


def test_the_dashboard_can_be_imported_anywhere() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "ai-worker"
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]][:2] == ["datasource", "job"]
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"]
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
            for target in panel["targets"]:
                assert "[5m]" not in target["expr"]
                assert ("$__rate_interval" in target["expr"]) == bool(re.search(r"\brate\(", target["expr"]))
                assert re.search(r'job="\$(process_)?job"', target["expr"])


def test_its_panels_stand_beside_one_another() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    places = [panel["gridPos"] for panel in PANELS]
    for place in places:
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_above


def test_prometheus_understands_the_queries_of_the_dashboard(promtool: Promtool, tmp_path: Path) -> None:
    rules = []
    for where, query in QUERIES.items():
        filled = query.replace("$__rate_interval", "1m").replace("$job", "ai-worker").replace("$process_job", "ai-worker-process")
        rules.append({"record": re.sub(r"\W", "_", where), "expr": filled.replace("$model", ".*")})
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool.check_rules(path)


def test_every_metric_is_of_use() -> None:
    """What nobody looks at need not be counted."""
    named = {re.sub(r"_bucket$", "", each.name) for query in QUERIES.values() for each in selectors(query)}
    assert METRICS.keys() - named == set()
