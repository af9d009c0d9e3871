"""That the checker that other tests lean on finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.promtool import REQUIRE_PROMTOOL, Promtool

GOOD = "# HELP shop_orders_total Orders.\n# TYPE shop_orders_total counter\nshop_orders_total 3\n"


def test_it_takes_metrics_that_keep_to_the_conventions(promtool: Promtool) -> None:
    promtool.check_metrics(GOOD)


@pytest.mark.parametrize(
    ("exposition", "complaint"),
    [
        pytest.param(GOOD.replace("_total", ""), "_total", id="a counter that is not named as one"),
        pytest.param("# HELP wait_ms Wait.\n# TYPE wait_ms gauge\nwait_ms 3\n", "ms", id="not in base units"),
        pytest.param("shop{ 3\n", "error", id="not well formed"),
    ],
)
def test_it_refuses_other_metrics(promtool: Promtool, exposition: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        promtool.check_metrics(exposition)


def test_it_refuses_a_rule_that_cannot_be_evaluated(promtool: Promtool, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: a, rules: [{alert: A, expr: 'sum('}]}]")
    with pytest.raises(AssertionError, match="parse"):
        promtool.check_rules(rules)


def test_without_it_tests_are_skipped_or_fail_where_it_is_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.delenv(REQUIRE_PROMTOOL, raising=False)
    with pytest.raises(pytest.skip.Exception, match="make prepare"):
        Promtool.found()
    monkeypatch.setenv(REQUIRE_PROMTOOL, "1")
    with pytest.raises(pytest.fail.Exception, match="make prepare"):
        Promtool.found()
