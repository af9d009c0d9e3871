"""Results come back as they were handed in, whatever characters they hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ai_worker.models import NO_USAGE, Item, Outcome, Result
from ai_worker.store.queue import Queue
from tests.integration.lifecycle import (
    COST,
    USAGE,
    Application,
    Sql,
    assert_ledger,
    claim,
    done,
)

pytest_plugins = ["tests.integration.lifecycle"]


@pytest.fixture(autouse=True)
def _ledger_at_the_end(sql: Sql) -> Any:
    """Whatever a test did, all tables agree with each other at its end."""
    yield
    assert_ledger(sql)


@pytest.mark.parametrize(
    "text",
    [
        "🐝👩‍👩‍👧‍👦 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff",
        "NUL \0 w środku i na końcu \0",
        'cudzysłowy \' " ` „” \\ \\\\ \\n \\u0041 %s %(x)s %% $.tc {"a": 1}',
        "linie\r\n\tkolumny\n\x1a\x7f \u2028 \ufeff",
        "",
        "ą" * 524_288,  # 1 MiB in UTF-8
    ],
    ids=["emoji", "nul", "quotes", "control", "empty", "1MiB"],
)
def test_results_come_back_byte_for_byte(
    application: Application, queue: Queue, worker: int, claimed_item: Item, text: str
) -> None:
    summary = text[:10_000]
    outcome = Outcome.processed(claimed_item, Result(text, summary, {"text": text, text[:50]: [text[:9]]}), USAGE, COST, 1)
    assert queue.commit(worker, [outcome]).stored
    row = application.item_row(claimed_item.id_task_item)
    assert row["text_corrected"] == text
    assert row["change_summary"] == summary
    assert json.loads(row["result"]) == {"text": text, text[:50]: [text[:9]]}


def test_half_a_surrogate_pair_becomes_the_replacement_character(
    application: Application, queue: Queue, worker: int, task: int
) -> None:
    """Models answer such escapes now and then; JSON allows them, no database stores them."""
    application.items(task, 2)
    one, two = claim(queue, worker, 2)
    broken = json.loads('"a\\ud83d b\\udc1d"')
    refused = Outcome.failed(two, "bad_answer", broken, NO_USAGE, None, 1)
    report = queue.commit(worker, [done(one, broken), refused])
    assert len(report.stored) == 2
    row = application.item_row(one.id_task_item)
    assert row["text_corrected"] == "a\ufffd b\ufffd"
    assert json.loads(row["result"]) == {"text": "a\ufffd b\ufffd"}
    assert application.item_row(two.id_task_item)["error_message"] == "a\ufffd b\ufffd"


def test_half_a_surrogate_pair_of_a_plug_in_costs_no_result(
    application: Application, queue: Queue, worker: int, claimed_item: Item
) -> None:
    broken = json.loads('"pół \\ud83d pary"')
    assert queue.commit(worker, [done(claimed_item, broken)]).stored
    assert application.item_row(claimed_item.id_task_item)["text_corrected"] == "pół \ufffd pary"


def test_a_nested_answer_is_stored_whole(application: Application, queue: Queue, worker: int, claimed_item: Item) -> None:
    """MariaDB takes 32 levels, MySQL 100."""
    data: Any = {"koniec": True}
    for level in range(18):
        data = {"poziom": level, "dalej": [data]} if level % 2 else {"poziom": level, "dalej": data}
    queue.commit(worker, [done(claimed_item, data={**data, "duża": 2**63, "mała": -1.5e-7})])
    assert json.loads(application.item_row(claimed_item.id_task_item)["result"]) == {**data, "duża": 2**63, "mała": -1.5e-7}


def test_a_long_error_message_is_cut(application: Application, queue: Queue, worker: int, claimed_item: Item) -> None:
    queue.commit(worker, [Outcome.failed(claimed_item, "invalid_request", "ż" * 5000, NO_USAGE, None, 1)])
    assert application.item_row(claimed_item.id_task_item)["error_message"] == "ż" * 1000
