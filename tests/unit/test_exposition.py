"""The metrics as Prometheus reads them, and a worker's own endpoint, without a database."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from ai_worker.counts import Counts, Key, Metric, Source
from ai_worker.errors import ConfigurationError
from ai_worker.exposition import Exposition, Gauge, Sample, text
from ai_worker.log import Log
from ai_worker.worker import metrics
from tests.promtool import Promtool


def test_labels_and_numbers_come_out_as_they_are(promtool: Promtool) -> None:
    """Whatever a model is called."""
    name = 'a "model" \\ with\nlines, ż'
    samples = [
        Sample(Key("tokens_total", 7, "input"), name, 3e15),
        Sample(Key("attempts_total", 7, "retry/timeout"), name, 2),
        Sample(Key("claim_duration_seconds", 0, "0.001"), "", 2),
        Sample(Key("claim_duration_seconds", 0, "+Inf"), "", 1),
        Sample(Key("claim_duration_seconds", 0, "sum"), "", 9.5),
        Sample(Key("of_a_later_version_total"), "", 1),
    ]
    gauges = [Gauge(Metric.IN_FLIGHT, (name,), 5)]
    found = text(Exposition(Source.FLEET, lambda: (samples, gauges))).decode()
    promtool.check_metrics(found)
    escaped = 'a \\"model\\" \\\\ with\\nlines, ż'
    assert f'ai_worker_tokens_total{{model="{escaped}",type="input"}} 3e+15' in found.splitlines()
    assert f'ai_worker_attempts_total{{error_kind="timeout",model="{escaped}",outcome="retry"}} 2.0' in found.splitlines()
    assert f'ai_worker_in_flight{{model="{escaped}"}} 5.0' in found.splitlines()
    lines = [line for line in found.splitlines() if line.startswith("ai_worker_claim_duration_seconds")]
    assert lines[0] == 'ai_worker_claim_duration_seconds_bucket{le="0.001"} 2.0'
    assert lines[-3:] == [
        'ai_worker_claim_duration_seconds_bucket{le="+Inf"} 3.0',
        "ai_worker_claim_duration_seconds_count 3.0",
        "ai_worker_claim_duration_seconds_sum 9.5",
    ]
    assert "ai_worker_rescued_items_total 0.0" in found.splitlines()
    assert "of_a_later_version" not in found


def test_models_of_one_name_are_one_series(promtool: Promtool) -> None:
    """A model that was removed, and one that took its name, would else be told twice, which Prometheus refuses."""
    samples = [Sample(Key("cost_usd_total", each), "m", 1.5) for each in (1, 2)]
    found = text(Exposition(Source.FLEET, lambda: (samples, []))).decode()
    promtool.check_metrics(found)
    assert 'ai_worker_cost_usd_total{model="m"} 3.0' in found.splitlines()


def served(port: int | None) -> None:
    with metrics.serving(port, "127.0.0.1", Counts(), str, dict, lambda _: 0, Log()):
        pass


def test_a_port_in_use_is_told_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=rf"port {port}: Address already in use; set AI_WORKER_METRICS_PORT to a free"
        ):
            served(port)


def test_a_missing_package_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    served(None)  # nobody asked for it
    with pytest.raises(ConfigurationError, match=r"pip install 'ai-worker\[metrics\]'"):
        served(0)


def test_the_page_on_monitoring_tells_of_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = {found[1]: found[0] for found in re.finditer(r"^\| `(ai_worker_\w+)` \|.*$", page, flags=re.MULTILINE)}
    told_by = {Source.FLEET: "web", Source.PROCESS: "worker", Source.BOTH: "both"}
    expected = {
        each.full_name: f"| `{each.full_name}` | {each.kind.name.lower()} | {', '.join(f'`{label}`' for label in each.labels)} "
        f"| {told_by[each.source]} | {each.help} |"
        for each in Metric
    }
    assert rows == expected
